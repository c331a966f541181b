"""The public names are there, are imported late, and are seen by type checkers."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import finetooth

SOURCE = Path(finetooth.__file__)
PUBLIC = [name for name in finetooth.__all__ if name != "__version__"]


def test_importing_the_package_loads_neither_torch_nor_numpy():
    code = "import sys, finetooth; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(SOURCE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_defined_where_it_is_said_to_be(name: str):
    module = importlib.import_module(finetooth._MODULES[name])
    assert getattr(finetooth, name) is getattr(module, name)


def test_type_checkers_see_the_same_names_at_the_same_places():
    (block,) = (node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == finetooth._MODULES
    assert sorted(seen) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(finetooth))


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError) as caught:
        finetooth.Nonsense  # noqa: B018
    assert str(caught.value) == "module 'finetooth' has no attribute 'Nonsense'"
