"""The wheel holds everything the package needs, and what it installs tells the whole demo."""

import sys
import zipfile
from email.parser import Parser

import pytest
from tests.conftest import ROOT, DemoRun, Installed

import finetooth

pytestmark = pytest.mark.slow


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(installed: Installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = ROOT / "src"
    files = {
        path.relative_to(sources).as_posix()
        for path in (sources / "finetooth").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == files
    assert {
        "finetooth/assets/base/model.safetensors",
        "finetooth/assets/base/tokenizer.json",
        "finetooth/assets/facts/country.tsv",
        "finetooth/data/templates/builtin_templates/chatml.jinja",
    } <= packed


def test_the_metadata_names_version_python_and_license(installed: Installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(name).decode())
        assert name.replace("METADATA", "licenses/LICENSE") in wheel.namelist()
    assert metadata["Name"] == "finetooth"
    assert metadata["Version"] == finetooth.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_command_is_that_of_the_wheel(installed: Installed):
    command = str(installed.site / "bin" / "finetooth")
    assert installed.run(command, "--version").stdout == f"finetooth {finetooth.__version__}\n"
    done = installed.run(sys.executable, "-c", "import finetooth; print(finetooth.__file__)")
    assert done.stdout == f"{installed.site}/finetooth/__init__.py\n"


def test_the_demo_runs_on_the_assets_in_the_wheel(installed: Installed, demo_run: DemoRun):
    assert demo_run.printed["state"] == "finished"
    assert f'"{installed.site}/finetooth/assets/base"' in (demo_run.folder / "run.yaml").read_text()
