"""Records the operations through which files come to the disk; replays some of them; makes one of them fail.

    ("create", "a/b")  ("write", "a/b", b"…")  ("fsync", "a/b")  ("mkdir", "a")  ("rename", "a", "c")
    ("exchange", "a", "c")  ("symlink", "target", "a/l")  ("unlink", "a/b")  ("rmdir", "a")

Paths are relative to the folder that is watched; what happens elsewhere passes by.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetooth.base import files

Operation = tuple[Any, ...]
NAMES = ("open", "write", "fsync", "mkdir", "rename", "replace", "symlink", "unlink", "rmdir")
ELSEWHERE = Path("/")


@contextlib.contextmanager
def watched(
    root: Path, before: Callable[[int, Operation], None] = lambda number, operation: None
) -> Iterator[list[Operation]]:
    """Yields the list that grows with every operation below `root`.

    before: is called with the number and the operation before it happens, and may raise in its place.
    """
    done: list[Operation] = []
    opened: dict[int, Path] = {}
    real = {name: getattr(os, name) for name in NAMES}
    exchange = files._exchange

    @contextlib.contextmanager
    def noting(kind: str, *rest: Any) -> Iterator[None]:
        places = rest[:1] if kind == "write" else rest[1:] if kind == "symlink" else rest
        is_watched = all(Path(place).is_relative_to(root) for place in places)
        operation: Operation = ()
        if is_watched:
            told = (str(Path(part).relative_to(root)) if part in places else part for part in rest)
            operation = (kind, *told)
            before(len(done), operation)
        yield
        if is_watched:
            done.append(operation)

    def placed(path: Any, dir_fd: int | None = None) -> Path:
        return Path(os.path.abspath(opened[dir_fd] / path if dir_fd is not None else path))

    def watched_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        creating = noting("create", placed(path, dir_fd)) if flags & os.O_CREAT else contextlib.nullcontext()
        with creating:
            descriptor = real["open"](path, flags, mode, dir_fd=dir_fd)
        opened[descriptor] = placed(path, dir_fd)
        return descriptor

    def watched_write(descriptor: int, content: Any) -> int:
        with noting("write", opened.get(descriptor, ELSEWHERE), bytes(content)):
            return real["write"](descriptor, content)

    def watched_fsync(descriptor: int) -> None:
        with noting("fsync", opened.get(descriptor, ELSEWHERE)):
            real["fsync"](descriptor)

    def on_one_path(kind: str) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, dir_fd: int | None = None, **options: Any) -> Any:
            with noting(kind, placed(path, dir_fd)):
                return real[kind](path, *arguments, dir_fd=dir_fd, **options)

        return call

    def on_two_paths(name: str) -> Callable[..., Any]:
        def call(first: Any, second: Any) -> Any:
            with noting("rename", placed(first), placed(second)):
                return real[name](first, second)

        return call

    def watched_symlink(target: Any, path: Any, target_is_directory: bool = False) -> None:
        with noting("symlink", str(target), placed(path)):
            real["symlink"](target, path, target_is_directory)

    def watched_exchange(first: Path, second: Path) -> bool:
        with noting("exchange", placed(first), placed(second)):
            return exchange(first, second)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", watched_open)
        patch.setattr(os, "write", watched_write)
        patch.setattr(os, "fsync", watched_fsync)
        patch.setattr(os, "symlink", watched_symlink)
        for name in ("mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, on_one_path(name))
        for name in ("rename", "replace"):
            patch.setattr(os, name, on_two_paths(name))
        patch.setattr(files, "_exchange", watched_exchange)
        yield done


def replay(operations: Sequence[Operation], root: Path, *, loses_what_is_not_flushed: bool) -> None:
    """Does the operations again in another folder.

    loses_what_is_not_flushed: as when the power fails: contents that no fsync followed are gone.
    """
    for number, (kind, *places) in enumerate(operations):
        path = root / places[-1] if kind != "write" else root / places[0]
        if kind == "create":
            path.touch(exist_ok=False)
        elif kind == "write":
            is_flushed = ("fsync", places[0]) in operations[number:]
            if is_flushed or not loses_what_is_not_flushed:
                with path.open("ab") as file:
                    file.write(places[1])
        elif kind in ("mkdir", "unlink", "rmdir"):
            getattr(path, kind)()
        elif kind == "symlink":
            path.symlink_to(places[0])
        elif kind == "rename":
            (root / places[0]).replace(path)
        elif kind == "exchange":
            assert files._exchange(root / places[0], path)
        else:
            assert kind == "fsync", kind
