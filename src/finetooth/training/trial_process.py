"""Starts a trial of a run in a process of its own, which memory may kill, and reads what it found."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetooth.base.errors import DeviceMemoryError, FinetoothError, problem
from finetooth.base.files import passing_folder, told_plainly
from finetooth.config.describe import describe_config
from finetooth.config.schema import SFTConfig
from finetooth.training.duration import Part

# So low that a policy stays what it is, and high enough that no number becomes denormal, which is slow.
_LEARNING_RATE = 1e-12
_FOLDER = "finetooth-plan"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial found.

    device:      what computes, in words
    parts:       of a run, by name; "start" lasts from the command to the first step, "end" ends the process
    peak_memory: bytes, of a GPU's allocations or the process's resident set
    recompute:   what of each layer is computed again
    seconds:     that the trial took
    """

    device: str
    parts: Mapping[str, Part]
    peak_memory: int
    recompute: str
    seconds: float

    @property
    def run_seconds(self) -> float:
        """What the whole run takes."""
        return sum(part.seconds for part in self.parts.values())


def run_trial(config: SFTConfig) -> Trial:
    """Does once what the run does; its folder stands beside `output_dir`, on the same disk, and is removed.

    Where this process is killed, a later trial there removes it, once the one that measures has ended, too.
    Raises what the trial raises, and DeviceMemoryError where the system kills it.
    """
    output = Path(config.output_dir)
    beside = next(folder for folder in output.absolute().parents if folder.is_dir())
    with told_plainly(beside / output.name), passing_folder(beside / _FOLDER) as (folder, held):
        path = folder / "run.yaml"
        path.write_text(describe_config(_for_trial(config, folder / "run")), encoding="utf-8")
        command = [sys.executable, "-m", "finetooth", "trial", str(path), "--json"]
        started = time.monotonic()
        process = _run(command, held)
        ended = time.monotonic()
    if process.returncode != 0:
        raise _failure(process)
    found = json.loads(process.stdout)
    parts = {name: Part(**fields) for name, fields in found["parts"].items()}
    begins = {"start": Part(found["ready_at"] - started, "processes", 1, 1)}
    ends = {"end": Part(ended - found["ended_at"], "processes", 1, 1)}
    return Trial(
        device=found["device"],
        parts=begins | parts | ends,
        peak_memory=found["peak_memory"],
        recompute=found["recompute"],
        seconds=ended - started,
    )


def _run(command: Sequence[str], held: int) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; held: what holds its folder, kept open also where this process is killed."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        pass_fds=(held,),
    )


def _for_trial(config: SFTConfig, output: Path) -> SFTConfig:
    training = replace(config.training, learning_rate=_LEARNING_RATE, min_learning_rate=0.0)
    return replace(config, training=training, output_dir=str(output))


def _failure(process: subprocess.CompletedProcess[str]) -> FinetoothError:
    """What ended the trial, as it told it; a system that runs out of memory kills it before it can."""
    if process.returncode == -signal.SIGKILL:
        fact = "the system killed the process that measured, as it does where memory runs out"
        remedy = "lower training.row_tokens or training.rows_at_once, or free memory"
        return DeviceMemoryError(problem("memory", fact, remedy))
    lines = process.stdout.strip().splitlines()
    told: Any = json.loads(lines[-1]) if lines and lines[-1].startswith('{"error"') else None
    if told is None:
        last = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
        fact = f"exit code {process.returncode}: {last}"
        return FinetoothError(problem("--measure", fact, "see what finetooth train says"))
    error = FinetoothError(told["error"])
    error.exit_code = told["exit_code"]
    return error
