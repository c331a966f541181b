"""`finetooth train --nproc N`: N processes of the same command on this machine, and one exit code.

torchrun does the same on many machines, but ends with 1 whatever its processes end with; here the code of the
process that ended first is kept (75 after SIGTERM, 3 for bad data, …).
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

RENDEZVOUS = "FINETOOTH_RENDEZVOUS"
PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.05
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def launch(arguments: Sequence[str], *, num_processes: int) -> int:
    """Runs `finetooth ARGUMENTS` in so many processes; returns the exit code of the first that failed.

    Signals are passed on. When a process fails, the others get 30 seconds to end by themselves.
    """
    with tempfile.TemporaryDirectory(prefix="finetooth-ranks-") as folder:
        rendezvous = Path(folder, "rendezvous")
        command = [sys.executable, "-m", "finetooth", *arguments]
        processes = [
            subprocess.Popen(command, env=_environment(rank, num_processes, rendezvous))
            for rank in range(num_processes)
        ]
        before = {number: signal.getsignal(number) for number in _FORWARDED}

        def pass_on(number: int, frame: FrameType | None) -> None:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)

        for number in _FORWARDED:
            signal.signal(number, pass_on)
        try:
            return _wait(processes)
        finally:
            for process in processes:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)


def _environment(rank: int, num_processes: int, rendezvous: Path) -> Mapping[str, str]:
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": num_processes,
        "LOCAL_WORLD_SIZE": num_processes,
        RENDEZVOUS: rendezvous,
    }
    named = {name: str(value) for name, value in own.items()}
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **named}


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of the first process that failed, 0 where none did; kills those that do not end."""
    failed_at, exit_code = None, 0
    while any(process.poll() is None for process in processes):
        for process in processes:
            if exit_code == 0 and process.poll():
                failed_at, exit_code = time.monotonic(), process.returncode
        if failed_at is not None and time.monotonic() > failed_at + PATIENCE_SECONDS:
            for process in processes:
                process.kill()
        time.sleep(_POLL_SECONDS)
    codes = [process.returncode for process in processes if process.returncode]
    code = exit_code or (codes[0] if codes else 0)
    return code if code >= 0 else 128 - code
