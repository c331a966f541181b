"""`finetooth train --nproc N`: N processes of the same command on this machine, and one exit code.

torchrun does the same on many machines, but ends with 1 whatever its processes end with; here the code of the
process that ended first is kept (75 after SIGTERM, 3 for bad data, …).
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from finetooth.base.stopping import WATCHED

RENDEZVOUS = "FINETOOTH_RENDEZVOUS"
PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.05
_STOPPED = (75, 130)  # a process was asked to stop, by SIGTERM or SIGUSR1, or by SIGINT
_TELL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of Linux' prctl


def launch(arguments: Sequence[str], *, num_processes: int) -> int:
    """Runs `finetooth ARGUMENTS` in so many processes; returns the exit code of the first that failed.

    Signals are passed on. When a process fails, the others get 10 seconds to end by themselves. On Linux a
    launcher that is killed takes its processes with it: they are asked to stop, as by SIGTERM.
    """
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in WATCHED}
    try:
        with tempfile.TemporaryDirectory(prefix="finetooth-ranks-", ignore_cleanup_errors=True) as folder:
            command = [sys.executable, "-m", "finetooth", *arguments]
            for rank in range(num_processes):
                if not received:
                    environment = _environment(rank, num_processes, Path(folder, "rendezvous"))
                    processes.append(_start(command, environment))
                    if received:  # between its start and its place in the list
                        processes[-1].send_signal(received[-1])
            try:
                return _exit_code(_wait(processes) if processes else -received[0], received)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own: Ctrl-C reaches it through the launcher alone, once."""
    launcher = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie_to_launcher() -> None:
        if libc is not None:
            libc.prctl(_TELL_OF_PARENTS_DEATH, signal.SIGTERM)
            if os.getppid() != launcher:
                os.kill(os.getpid(), signal.SIGKILL)

    # preexec_fn is safe where no other thread runs, as here.
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=tie_to_launcher)


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
    """The return code of the first process that failed, 0 where none did; kills those that do not end."""
    failed_at, failure = None, 0
    while any(process.poll() is None for process in processes):
        for rank, process in enumerate(processes):
            if failure == 0 and process.poll():
                failed_at, failure = time.monotonic(), process.returncode
                if failure == -signal.SIGKILL:
                    fact = "ended by SIGKILL; where nobody sent it, the machine's memory ran out"
                    print(f"rank {rank}: {fact}", file=sys.stderr)
        if failed_at is not None and time.monotonic() > failed_at + PATIENCE_SECONDS:
            if failure in _STOPPED and processes[0].poll() is None:  # which would have told it
                print("run: stopped; continue with --resume auto", file=sys.stderr)
            for process in processes:
                process.kill()
                process.wait()
        time.sleep(_POLL_SECONDS)
    return failure or next((process.returncode for process in processes if process.returncode), 0)


def _exit_code(return_code: int, received: Sequence[int]) -> int:
    """As a shell tells it; 75 or 130 for what a signal that was passed on ended before it could listen."""
    if len(received) == 1 and return_code == -received[0]:
        print("run: stopped before the first step; start it with the same command", file=sys.stderr)
        return 130 if received[0] == signal.SIGINT else 75
    return return_code if return_code >= 0 else 128 - return_code
