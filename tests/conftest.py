"""What several tests need; set before torch and the hub's library are imported."""

import os

# Tiny tensors gain nothing from a second thread, and lose much when the processor has other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# `precision: auto` takes fp32 on every processor: without instructions for bf16, it never pays.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

ROOT = Path(__file__).resolve().parents[1]

# Tests that a shell starts in the background ignore Ctrl-C, and so would the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# How long one example takes says nothing on a machine that has other work.
hypothesis_settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, which holds real data, tokenizers and templates."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: real data is not at hand")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of prepared data for these tests alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETOOTH_CACHE", str(folder))
        yield folder


@dataclass(frozen=True)
class Installed:
    """finetooth as its wheel installs it, in a folder of its own beside the libraries of this environment."""

    wheel: Path
    site: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command that knows no other finetooth; two threads where there are two processors."""
        environment = {**os.environ, "PYTHONPATH": str(self.site)}
        environment.pop("OMP_NUM_THREADS")
        return subprocess.run(
            command, cwd=self.wheel.parent, env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of this checkout, built and installed without network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = ["--target", str(folder / "site"), "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "install", *target], check=True, capture_output=True)
    return Installed(wheel, folder / "site")


@dataclass(frozen=True)
class DemoRun:
    """What `finetooth demo` left behind and printed."""

    folder: Path
    printed: dict[str, Any]


@pytest.fixture(scope="session")
def demo_run(installed: Installed) -> DemoRun:
    """The demo, told once per session, by the installed wheel."""
    folder = installed.wheel.parent / "demo"
    finetooth = str(installed.site / "bin" / "finetooth")
    done = installed.run(finetooth, "demo", "--json", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return DemoRun(folder, json.loads(done.stdout))
