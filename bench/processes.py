"""Runs a command in a process of its own, and tells how long it took and what the machine did meanwhile."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_POLL_SECONDS, _BUSY_MILLISECONDS = 0.1, 200
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_RECOMPILED = re.compile(r"^V(\d{4} [\d:.]+) .*\[__recompiles\] Recompiling function", re.MULTILINE)


class ArmError(Exception):
    """A process that could not do its work; the message is the last line it wrote, or why it was stopped."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that did its work. Times are seconds since 1970.

    peak_memory_mb: the most that was resident
    gpu_busy:       times, and the share of the moment before during which a GPU computed
    recompiled:     times at which torch.compile had to compile anew what it had compiled before
    """

    started: float
    ended: float
    peak_memory_mb: float
    gpu_busy: tuple[tuple[float, float], ...]
    recompiled: tuple[float, ...]


def run_process(command: Sequence[str], folder: Path, *, limit: float) -> Ended:
    """Runs a command to its end; log.txt in the folder holds what it wrote.

    limit: seconds after which it is stopped. Raises ArmError where it was, or failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("wb") as output, _gpu_watched(folder / "busy.csv"):
        started = time.time()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=_environment(folder))
        try:
            peak = _wait(process, started + limit)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        ended = time.time()
    if peak is None:
        raise ArmError(f"stopped after {limit:g} s")
    text = log.read_text(errors="replace")
    if process.returncode != 0:
        raise ArmError((text.strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    return Ended(started, ended, peak / 1e6, tuple(_read_busy(folder / "busy.csv")), tuple(_recompiled(text)))


@contextlib.contextmanager
def ending_orderly() -> Iterator[None]:
    """On SIGTERM, the process that runs is ended as well, and its files are removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _environment(folder: Path) -> dict[str, str]:
    """No network, nothing cached by earlier runs but Python's bytecode; what is compiled anew is logged."""
    cache = str(folder / "cache")
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": cache,
        "FINETOOTH_CACHE": cache,
        "TORCH_LOGS": "recompiles",
    }
    # compiled code is kept elsewhere between runs
    variables |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": cache}
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return own | variables


def _wait(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    """The most bytes that were resident in the process, at its end; None where it goes on too long.

    The figure of wait4 begins with what this process holds, so it counts only where /proc does not tell.
    """
    peak = 0
    while time.time() < deadline:
        peak = max(peak, _peak_so_far(process.pid))
        number, status, usage = os.wait4(process.pid, os.WNOHANG)
        if number:
            process.returncode = os.waitstatus_to_exitcode(status)
            return peak or usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        time.sleep(_POLL_SECONDS)
    return None


def _peak_so_far(number: int) -> int:
    """The largest resident set of a process so far, in bytes; 0 where it has ended or there is no /proc."""
    try:
        told = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return 0
    match = _PEAK.search(told)
    return int(match[1]) * 1024 if match else 0


@contextlib.contextmanager
def _gpu_watched(path: Path) -> Iterator[None]:
    """Writes how busy the first GPU is, several times a second, where nvidia-smi can tell."""
    command = shutil.which("nvidia-smi")
    if command is None:
        yield
        return
    query = ["--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
    with path.open("wb") as file:
        watcher = subprocess.Popen([command, *query, f"--loop-ms={_BUSY_MILLISECONDS}"], stdout=file)
        try:
            yield
        finally:
            watcher.terminate()
            watcher.wait()


def _read_busy(path: Path) -> Iterator[tuple[float, float]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        moment, _, percent = line.partition(", ")
        if percent.strip().isdecimal():  # "[N/A]" where it cannot be read; the last line may be cut off
            yield datetime.strptime(moment, "%Y/%m/%d %H:%M:%S.%f").timestamp(), int(percent) / 100


def _recompiled(log: str) -> Iterator[float]:
    year = datetime.now().year
    for moment in _RECOMPILED.findall(log):
        yield datetime.strptime(f"{year}{moment}", "%Y%m%d %H:%M:%S.%f").timestamp()
