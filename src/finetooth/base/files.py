"""Files and folders that exist only when they are complete.

What is being written carries another name (`.NAME.partial-…`, beside its place) until every byte of it is on
the disk; then it is renamed. A folder holds, written last, MANIFEST.json:

    {"files": {"train/token_ids.bin": {"size": 5120, "sha256": "9f86d0…"}, …}}
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from finetooth.base.errors import DiskFullError, FinetoothError, problem

MANIFEST_NAME = "MANIFEST.json"

FileEntry = tuple[int, str]  # a file's size and SHA-256, as the manifest has them

_OTHER_PLACE = "free space there or choose another place"
_LEFTOVER_AGE_SECONDS = 60
_PIECE_BYTES = 2**24  # what one call writes; some systems take less than 2 GiB at once
_NOT_WRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST),  # a file stands where a folder above it is needed
    *(errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),  # no folder can be made there, as below /proc
)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it holds either all of `content` or what it held before, whatever happens.

    Raises FinetoothError where the disk is full or the place may not be written.
    """
    partial = _partial_name(path)
    with told_plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_new(partial, [content])
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_proved(path: Path, pieces: Iterable[bytes | memoryview]) -> FileEntry:
    """Writes a new file, and reads it back from the disk to prove that it holds what was written.

    Returns its entry for the manifest. Raises FinetoothError where the disk is full, the place may not be
    written, or what comes back differs.
    """
    with told_plainly(path):
        entry = _write_new(path, pieces)
        if _read_back(path) != entry:
            fact, remedy = "reads back otherwise than it was written", "check the disk and the memory"
            raise FinetoothError(problem(path, fact, remedy))
        return entry


def problems_of_place(file: Path, *, option: str) -> list[str]:
    """Why a file cannot be put there, as a problem of the option that names it; nothing where it can."""
    if file.is_dir():
        return [problem(option, f"{file} is a folder", "name a file")]
    if not file.parent.is_dir():
        return [problem(option, f"there is no folder {file.parent}", "make it, or name another file")]
    return []


def require_space(folder: Path, num_bytes: int) -> None:
    """Raises FinetoothError where the disk of a folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        fact = f"{num_bytes:,} bytes are needed and {free:,} are free"
        raise FinetoothError(problem(folder.parent, fact, _OTHER_PLACE))


@contextlib.contextmanager
def told_plainly(path: Path, *, num_bytes: int | None = None) -> Generator[None, None, None]:
    """Tells in a sentence where the disk is full or the place of `path` may not be written.

    num_bytes: what is to be written in all; a full disk is then told with it, and about `path`.
    """
    try:
        yield
    except DiskFullError as error:
        if num_bytes is None or not isinstance(error.__cause__, OSError):
            raise
        raise _disk_full(path, error.__cause__, num_bytes) from error.__cause__
    except OSError as error:
        # An error that names a file elsewhere came from the caller's block and is not about this place.
        named = Path(str(cast(object, error.filename) or path)).absolute()
        if error.errno not in _NOT_WRITABLE or not named.is_relative_to(path.parent.absolute()):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path, error, num_bytes) from error
        fact = f"cannot be written ({os.strerror(error.errno)})"
        raise FinetoothError(problem(path, fact, _OTHER_PLACE)) from error


def _disk_full(path: Path, error: OSError, num_bytes: int | None) -> DiskFullError:
    there = next(folder for folder in path.absolute().parents if folder.exists())
    free = f"{shutil.disk_usage(there).free:,}"
    told = (
        f"{free} bytes are free"
        if num_bytes is None
        else f"{num_bytes:,} bytes are needed and {free} are free"
    )
    fact = f"cannot be written ({os.strerror(error.errno or 0)}), {told}"
    return DiskFullError(problem(path, fact, _OTHER_PLACE))


def remove_folder(path: Path) -> None:
    """Removes a folder so that nobody meets a part of it: its name vanishes first."""
    doomed = _partial_name(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def create_folder(path: Path) -> None:
    """Creates a folder, and those above it, where there is none.

    Raises FinetoothError where the disk is full or the place may not be written.
    """
    with told_plainly(path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def new_folder(
    path: Path, *, replace: bool = False, written: Mapping[str, FileEntry] | None = None
) -> Generator[Path, None, None]:
    """Yields an empty folder to be filled; it appears as `path` when the block ends, complete, or never.

    With `replace`, a folder that stands at `path` gives way in the same instant (on file systems that cannot
    exchange two names, in two renames). Without it, FileExistsError: before the block, or after it when
    another process was faster. What killed processes left beside `path` is removed.

    written: entries of files that are on the disk already (`write_proved`); the block may add to them. All
             other files are flushed and read for their hashes at the end.

    >>> with new_folder(Path("runs/first/final")) as folder:          # doctest: +SKIP
    ...     (folder / "config.json").write_text("{}")
    """
    with told_plainly(path):
        if path.exists() and not replace:
            raise FileExistsError(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with passing_folder(path) as (partial, _):
            yield partial
            _write_manifest(partial, written or {})
            _put_in_place(partial, path, replace=replace)
        _sync_folder(path.parent)


@contextlib.contextmanager
def passing_folder(path: Path) -> Generator[tuple[Path, int], None, None]:
    """Yields an empty folder beside `path`, removed when the block ends, and the descriptor that holds it.

    What killed processes left so is removed first. A process that is given the descriptor holds the folder as
    well: while it lives, nobody takes the folder for such a leftover.
    """
    folder = _partial_name(path)
    remove_leftovers(path.parent, glob.escape(path.name))
    folder.mkdir()
    try:
        with _locked(folder) as descriptor:
            yield folder, descriptor
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Removes what killed processes left of folders in `parent` whose names match; what is at work stays."""
    for leftover in parent.glob(f".{pattern}.partial-*"):
        # The age covers the instant between a folder's creation and its lock.
        if leftover.is_dir() and time.time() - leftover.stat().st_mtime > _LEFTOVER_AGE_SECONDS:
            descriptor = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            finally:
                os.close(descriptor)
            shutil.rmtree(leftover, ignore_errors=True)


def check_folder(path: Path, *, hashes: bool = True, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Compares a folder with its MANIFEST.json; returns what is wrong, one sentence per file, or nothing.

    Without `hashes` only names and sizes are compared, which takes no time for files of any size.
    share: (k, n) where n processes divide the work: of every n-th file, from the k-th, the hash is compared.
    """
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_bytes())
        expected = {str(name): (int(e["size"]), str(e["sha256"])) for name, e in manifest["files"].items()}
    except OSError:
        return [f"{MANIFEST_NAME}: missing"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{MANIFEST_NAME}: unreadable"]
    present = _files_below(path)
    problems = [f"{name}: missing" for name in expected if name not in present]
    problems += [f"{name}: not in the manifest" for name in present if name not in expected]
    for number, name in enumerate(present):
        if name in expected:
            is_mine = number % share[1] == share[0]
            problems += _difference(path / name, name, *expected[name], hashes=hashes and is_mine)
    return sorted(problems)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(6)}")


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[int, None, None]:
    """Marks a folder as being used; the mark vanishes with the descriptor, however its processes end."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Not every network file system knows locks; there, leftovers are merely not recognised.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_new(path: Path, pieces: Iterable[bytes | memoryview]) -> FileEntry:
    """Writes a file that must not exist, down to the disk."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B") if len(piece) else memoryview(b"")
            digest.update(rest)
            size += len(rest)
            while rest:
                rest = rest[os.write(descriptor, rest[:_PIECE_BYTES]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def _read_back(path: Path) -> FileEntry:
    """A file's entry, read from the disk where the system can be made to forget its copy in memory."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _write_manifest(folder: Path, written: Mapping[str, FileEntry]) -> None:
    files: dict[str, Any] = {}
    for name in _files_below(folder):
        size, sha256 = written.get(name) or _flushed(folder / name)
        files[name] = {"size": size, "sha256": sha256}
    for child in folder.rglob("*"):
        if child.is_dir():
            _sync_folder(child)
    write_atomically(folder / MANIFEST_NAME, json.dumps({"files": files}, indent=1).encode())


def _flushed(path: Path) -> FileEntry:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.stat().st_size, sha256_of(path)


def _files_below(folder: Path) -> list[str]:
    files = (child.relative_to(folder).as_posix() for child in folder.rglob("*") if child.is_file())
    return sorted(name for name in files if name != MANIFEST_NAME)


def _put_in_place(partial: Path, path: Path, *, replace: bool) -> None:
    if replace and path.exists():
        if not _exchange(partial, path):
            aside = _partial_name(path)
            path.rename(aside)
            partial.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
        return
    try:
        partial.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(path) from error
        raise


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step of the file system; False where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first.absolute()), os.fsencode(second.absolute())
    at_working_directory = -100
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return libc.renameat2(at_working_directory, names[0], at_working_directory, names[1], 2) == 0
    if sys.platform == "darwin":
        return libc.renamex_np(names[0], names[1], 2) == 0
    return False


def _difference(path: Path, name: str, size: int, sha256: str, *, hashes: bool) -> list[str]:
    found = path.stat().st_size
    if found != size:
        return [f"{name}: {found} bytes instead of {size}"]
    if hashes and sha256_of(path) != sha256:
        return [f"{name}: its content differs from its hash"]
    return []


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
