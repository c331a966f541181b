"""What a machine has is read from where the system tells it, and never more than a container may use."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from finetooth.base import machine
from finetooth.base.machine import Gpu, Machine, host_memory, this_machine


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GB with 40 free, which tells its container's limit in `limit`, and no GPU."""
    (tmp_path / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 39062500 kB\n")
    monkeypatch.setattr(machine, "_MEMORY_FILE", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_LIMIT_FILES", (tmp_path / "limit",))
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 15_625_000}.get)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answer_of(monkeypatch, None)
    return tmp_path


def answer_of(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """Lets `nvidia-smi` print this; None: there is none."""

    def run(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        if text is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, text)

    monkeypatch.setattr(machine.subprocess, "run", run)


def test_memory_is_what_the_system_says(told: Path):
    assert host_memory() == (64_000_000_000, 40_000_000_000)
    assert this_machine().describe() == "64.0 GB of memory, no GPU"


def test_a_container_has_no_more_than_it_may_use(told: Path):
    (told / "limit").write_text("8000000000\n")
    assert host_memory() == (8_000_000_000, 8_000_000_000)
    (told / "limit").write_text("max\n")
    assert host_memory() == (64_000_000_000, 40_000_000_000)


def test_where_the_system_does_not_tell_what_is_free_all_is(told: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_MEMORY_FILE", told / "absent")
    assert host_memory() == (64_000_000_000, 64_000_000_000)


def test_gpus_are_those_that_the_driver_and_the_environment_show(told: Path, monkeypatch: pytest.MonkeyPatch):
    answer_of(monkeypatch, "NVIDIA H100, 81559, 80994\nNVIDIA H100, 81559, 1000\n")
    first, second = Gpu("NVIDIA H100", 81559 << 20, 80994 << 20), Gpu("NVIDIA H100", 81559 << 20, 1000 << 20)
    assert this_machine().gpus == (first, second)
    assert this_machine().describe() == "2 × NVIDIA H100 with 85.5 GB"
    for visible, gpus in {
        "1": (second,),
        "": (),
        "1,0": (second, first),
        "7": (),
        "GPU-a": (first, second),
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert this_machine().gpus == gpus


def test_a_driver_that_does_not_answer_shows_none(told: Path, monkeypatch: pytest.MonkeyPatch):
    answer_of(monkeypatch, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n")
    assert this_machine().gpus == ()


def test_one_gpu_is_not_counted():
    assert Machine(1, 1, (Gpu("NVIDIA L4", 24_000_000_000, 1),)).describe() == "NVIDIA L4 with 24.0 GB"


@pytest.mark.parametrize(
    ("told_of", "instructions"),
    [
        ("model name : EPYC\nflags : fpu avx2 amx_bf16\n\nflags : avx512f\n", "avx2 amx_bf16"),
        ("Features : fp asimd bf16\n", "asimd bf16"),
    ],
)  # fmt: skip
def test_instruction_sets_that_matter_are_told(
    told_of: str, instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cpuinfo").write_text(told_of)
    monkeypatch.setattr(machine, "_PROCESSOR_FILE", tmp_path / "cpuinfo")
    processor = machine.this_processor()
    assert " ".join(processor.instructions) == instructions
    assert processor.name
    assert 1 <= processor.usable_cores <= processor.cores
