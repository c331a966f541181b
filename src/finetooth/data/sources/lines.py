"""Bytes and lines of a file, plain or compressed by gzip, in memory that does not grow with the file."""

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from finetooth.base.errors import DataError, problem

MAX_ENTRY_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def opened(path: str | Path) -> Generator[BinaryIO]:
    """The content of a file behind its byte-order mark; decompressed where the name ends in `.gz`.

    Raises DataError where the file cannot be read, also while it is read, and where it is compressed in
    another way than its name says.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = cast(BinaryIO, stack.enter_context(Path(path).open("rb")))
            is_compressed = Path(path).suffix.lower() == ".gz"
            if is_compressed:
                unpacked = stack.enter_context(gzip.GzipFile(fileobj=file))
                file = stack.enter_context(io.BufferedReader(cast(io.RawIOBase, unpacked), CHUNK_BYTES))
            start = file.read(len(_BYTE_ORDER_MARK))
            if start.startswith(_GZIP):
                raise DataError(_compressed(path, twice=is_compressed))
            if start != _BYTE_ORDER_MARK:
                file.seek(0)
            yield file
    except EOFError as error:
        raise DataError(problem(path, "its gzip data is cut off", "write or copy it again")) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(problem(path, "its gzip data is damaged", "write or copy it again")) from error
    except OSError as error:
        fact = f"cannot be read ({os.strerror(error.errno or 0)})"
        raise DataError(problem(path, fact, "allow reading it")) from error


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Every line with its number, counted from 1; None stands for a line too long to be held."""
    number = 0
    while line := file.readline(MAX_ENTRY_BYTES + 1):
        number += 1
        if len(line) > MAX_ENTRY_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK_BYTES)
            yield number, None
        else:
            yield number, line


def not_utf8(path: str | Path, line: int) -> DataError:
    """The error to be raised where the bytes of a line are no UTF-8 text."""
    return DataError(problem(path, f"line {line} is not UTF-8 text", "save the file as UTF-8"))


def _compressed(path: str | Path, *, twice: bool) -> str:
    if twice:
        return problem(path, "compressed twice by gzip", "decompress it once")
    return problem(path, "compressed by gzip, which its name does not say", "let its name end in .gz")
