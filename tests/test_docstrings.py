"""The examples in docstrings are run: what they show is what comes out."""

import doctest
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import finetooth

SOURCE = Path(finetooth.__file__).parent


def modules_with_examples() -> list[str]:
    """Every module whose text holds an example, found without importing it."""
    found = pkgutil.walk_packages(finetooth.__path__, "finetooth.")
    names = [module.name for module in found if not module.name.endswith("__main__")]
    return [name for name in names if ">>> " in source_of(name)]


def source_of(name: str) -> str:
    path = SOURCE.joinpath(*name.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def run_examples(module: ModuleType) -> doctest.TestResults:
    return doctest.testmod(module, verbose=False)


def test_modules_with_examples_are_found():
    assert {
        "finetooth.base.errors",
        "finetooth.batching.order",
        "finetooth.data.templates.provenance",
    } <= set(modules_with_examples())


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_show_what_comes_out(name: str, capsys: pytest.CaptureFixture[str]):
    result = run_examples(importlib.import_module(name))
    assert result.failed == 0, capsys.readouterr().out


def test_an_example_that_shows_something_else_is_noticed(capsys: pytest.CaptureFixture[str]):
    """Negative control."""
    module = ModuleType("wrong", "Adds.\n\n>>> 1 + 1\n3\n")
    assert run_examples(module) == doctest.TestResults(failed=1, attempted=1)
    assert "Expected:\n    3\nGot:\n    2" in capsys.readouterr().out
