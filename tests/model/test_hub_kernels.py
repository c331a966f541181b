"""Where the package `kernels` is installed, neither transformers nor bitsandbytes fetches code through it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.small_run import SOURCES
from transformers.utils.import_utils import KERNELS_MIN_VERSION

from finetooth.model.four_bits import import_bitsandbytes

# A package of that name whose decorators do nothing, and which tells when a kernel is fetched.
STAND_IN = """
def get_kernel(name, **options):
    print("fetched", name)
    raise FileNotFoundError(name)

def __getattr__(name):
    return lambda *given, **options: lambda wrapped: wrapped
"""
# Loads the package of adapters, too, which imports bitsandbytes.
PROGRAM = """
import finetooth.model.adapters
from transformers.integrations import hub_kernels
hub_kernels.lazy_load_kernel(next(iter(hub_kernels._HUB_KERNEL_MAPPING)))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the stand-in, of a version that transformers takes."""
    (tmp_path / "kernels.py").write_text(STAND_IN)
    version = KERNELS_MIN_VERSION
    (tmp_path / f"kernels-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n"
    (tmp_path / f"kernels-{version}.dist-info" / "METADATA").write_text(metadata)
    return tmp_path


def run_with(folder: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "USE_HUB_KERNELS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(SOURCES)])
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


@pytest.mark.slow
def test_kernels_of_the_hub_are_fetched_only_where_that_is_asked_for(installed: Path):
    assert run_with(installed) == ""
    assert "fetched" in run_with(installed, USE_HUB_KERNELS="1")


def test_bitsandbytes_does_not_find_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As when transformers has imported the package before."""
    (tmp_path / "bitsandbytes.py").write_text(
        "try:\n    import kernels\nexcept ImportError:\n    kernels = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "kernels", pytest)
    monkeypatch.setitem(sys.modules, "bitsandbytes", pytest)  # so that what is there now comes back
    del sys.modules["bitsandbytes"]
    assert import_bitsandbytes()
    assert vars(sys.modules.pop("bitsandbytes"))["kernels"] is None
    assert sys.modules["kernels"] is pytest
    assert vars(importlib.import_module("bitsandbytes"))["kernels"] is pytest
