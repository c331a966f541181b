"""The lock of a run directory: one run at a time writes into it.

    .lock    {"host": "node7", "pid": 4711, "since": "2026-11-20T19:55:40+00:00"}

The file is locked (flock) as long as its process lives, and removed when the run ends in order; one that is
not locked was left by a killed process and is taken over. Network file systems carry such locks from machine
to machine (NFS with its lock service, Lustre mounted with `flock`). On one that knows no locks at all, what
the file says decides: a live process of this machine, or any process of another one, holds it.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import told_plainly
from finetooth.base.kinds import require_kind
from finetooth.evaluation.run_files import Holder

LOCK_NAME = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def locked(folder: Path, *, place: str) -> Iterator[None]:
    """Holds a folder against other runs.

    place: the setting the folder stands in.
    Raises ConfigError, with host and process, where another run holds it.
    """
    path = folder / LOCK_NAME
    descriptor = _open_locked(path, place)
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes: whoever waits for it opens a new file
        os.close(descriptor)


def who_writes(folder: Path) -> Literal["nobody", "a process here", "a process elsewhere"]:
    """Who, besides this process, writes into a run directory, as its lock says.

    The lock is read and not tried, which could keep a run from starting. So the process of another machine
    counts as alive.
    """
    path = folder / LOCK_NAME
    holder = _parsed(path.read_bytes()) if path.is_file() else None
    if holder is None or holder["pid"] == os.getpid() or not _may_live(holder):
        return "nobody"
    return "a process here" if holder["host"] == socket.gethostname() else "a process elsewhere"


def _open_locked(path: Path, place: str) -> int:
    while True:
        with told_plainly(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            left = _read(descriptor)
            os.close(descriptor)
            if error.errno in _HELD or (left is not None and _may_live(left)):
                raise _is_held(path, place, left, is_certain=error.errno in _HELD) from None
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # the run before has just ended and removed it


def _read(descriptor: int) -> dict[str, Any] | None:
    return _parsed(os.pread(descriptor, 4096, 0))


def _parsed(content: bytes) -> dict[str, Any] | None:
    """What a lock says; None where it is no lock of a run."""
    try:
        holder = json.loads(content)
        require_kind(holder, Holder)
    except (ValueError, RecursionError, msgspec.ValidationError):
        return None
    return holder


def _may_live(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_held(path: Path, place: str, holder: dict[str, Any] | None, *, is_certain: bool) -> ConfigError:
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "another run"
    if is_certain:
        return ConfigError(problem(place, f"{who}, is writing into {path.parent}", "wait for it, or stop it"))
    fact = f"{who}, may be writing into {path.parent}, whose file system knows no locks"
    return ConfigError(problem(place, fact, f"if it has ended, remove {path}"))
