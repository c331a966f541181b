"""The cache of prepared data: the name of a folder, and that it is made once, by one process.

A folder is named after everything its content depends on. While it is made, its maker holds a lock
(`.NAME.lock`, beside it), which ends with the process however that ends; others wait. Under torchrun the
first process of each machine makes it; where that one fails or dies, the others, children of the same
launcher, learn it from the lock file.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from finetooth.base.errors import FinetoothError, problem
from finetooth.base.files import check_folder, create_folder, new_folder, remove_leftovers, sha256_of
from finetooth.config.schema import DataConfig

PATIENCE_SECONDS = 1800.0
_POLL_SECONDS = 0.1


def cache_folder(data: DataConfig) -> Path:
    """Where prepared data lies."""
    return Path(data.cache_dir).expanduser() if data.cache_dir else default_cache_folder()


def default_cache_folder() -> Path:
    """Where it lies when the settings name no place."""
    return Path(os.environ.get("FINETOOTH_CACHE") or "~/.cache/finetooth").expanduser()


def hash_of(value: Mapping[str, Any]) -> str:
    """SHA-256 of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_fingerprint() -> str:
    """Of the code that turns records into documents: when it changes, everything is prepared anew."""
    folder = Path(__file__).parent
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".jinja"))
    return hash_of({file.relative_to(folder).as_posix(): sha256_of(file) for file in files})


def is_sound(folder: Path) -> bool:
    """Whether a folder stands there complete."""
    return folder.is_dir() and not check_folder(folder, hashes=False)


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Has `make` fill the folder unless it stands there or another process makes it; True if made here.

    Raises what `make` raises, and FinetoothError where the process that was waited for failed.
    """
    last_sign = time.monotonic()
    while not is_sound(folder):
        if _may_make():
            with _locked(folder) as is_ours:
                if is_ours and not is_sound(folder):
                    _make(folder, make)
                    return True
        else:
            found = _look_at_maker(folder)
            if found == "at work":
                last_sign = time.monotonic()
            elif found != "unknown" and not is_sound(folder):
                told = problem(folder, f"the process that prepared it {found}", "see what it said")
                raise FinetoothError(told)
            elif time.monotonic() - last_sign > PATIENCE_SECONDS:
                fact = f"no process has prepared it for {PATIENCE_SECONDS / 60:.0f} minutes"
                remedy = "see whether the first process of this machine runs"
                raise FinetoothError(problem(folder, fact, remedy))
        time.sleep(_POLL_SECONDS)
    return False


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    remove_leftovers(folder.parent, "prepared-*")  # also of data that nobody prepares again
    # Where locks do not work, two may make it at once: the first to finish wins, and both use what it made.
    with contextlib.suppress(FileExistsError), new_folder(folder, replace=folder.exists()) as partial:
        make(partial)


def _may_make() -> bool:
    """Under a launcher of several processes, the first one of each machine makes what all of them need."""
    return not _is_launched() or int(os.environ.get("LOCAL_RANK") or 0) == 0


def _is_launched() -> bool:
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def _launch() -> str:
    """The same for all processes of this machine that one launcher started at once, and for no others."""
    return f"{os.getppid()}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[bool]:
    """Whether this process alone may make the folder, for as long as the block lasts.

    The lock file tells others who is at work: {"launch": …, "failed": false}.
    """
    path = _lock_path(folder)
    create_folder(path.parent)
    try:
        file = path.open("a+")
    except OSError:
        yield True  # what is written next to it fails as well, and says so in a sentence
        return
    with file:
        if not _lock_alone(file) or not _is_file_of(file, path):
            yield False
            return
        _write_note(file, has_failed=False)
        try:
            yield True
        except BaseException:
            if _is_launched():
                _write_note(file, has_failed=True)
            else:
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


def _look_at_maker(folder: Path) -> Literal["at work", "failed", "died", "unknown"]:
    """What became of the process that this launch lets prepare; unknown before it began."""
    try:
        file = _lock_path(folder).open()
    except OSError:
        return "unknown"
    with file:
        knows_locks = True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "at work"
        except OSError:
            knows_locks = False
        text = file.read()
    note: dict[str, Any] = json.loads(text) if text.endswith("}") else {}
    if note.get("launch") != _launch():
        return "unknown"
    return "failed" if note["failed"] else "died" if knows_locks else "unknown"


def _lock_alone(file: IO[str]) -> bool:
    """Takes the lock if it is free; where the file system knows no locks, it counts as free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_file_of(file: IO[str], path: Path) -> bool:
    """Whether the path still names the open file: who had the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_note(file: IO[str], *, has_failed: bool) -> None:
    file.truncate(0)
    file.write(json.dumps({"launch": _launch(), "failed": has_failed}))
    file.flush()


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
