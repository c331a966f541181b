"""Records read from a file one after the other, in memory that does not grow with the file.

A `.jsonl` file holds one JSON object per line; a `.json` file holds that, or one JSON list of objects. Text
is UTF-8, with or without a byte-order mark; blank lines are skipped. A record's line is the one it begins on.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from finetooth.base.errors import DataError, problem
from finetooth.data.records import Origin, Record

MAX_ENTRY_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 100

_CHUNK_BYTES = 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# JSON has no raw line break within quotes, so a lone quotation mark begins a broken or cut-off text.
_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|["\[\]{},]')
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class BadLine:
    """An entry of a file that is not a JSON object, and why."""

    origin: Origin
    fact: str
    remedy: str = "correct or remove it"


class NotARecordError(ValueError):
    """A text that is not one JSON object; the message is the fact to be told."""


def read_records(path: str | Path) -> Iterator[Record | BadLine]:
    """Reads a `.jsonl` or `.json` file; yields in order a Record per object and a BadLine per other entry.

    Raises DataError, with the path as given, where the file is missing, no file, unreadable, empty, of
    another kind, not UTF-8, begins with an object over several lines, or where its JSON list does not end.

        {"prompt": "2+2?", "response": "4"}      Record(origin t.jsonl:1, fields {"prompt": …})
                                                 (blank: skipped)
        {"prompt": NaN}                          BadLine(origin t.jsonl:3, "NaN is not JSON")
    """
    holds_list = _require_readable(path)
    return _parsed_entries(path, holds_list=holds_list)


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object, read strictly: no NaN, no infinity, no lone surrogate, no key twice, bounded depth.

    Raises NotARecordError.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise NotARecordError(f"{kind_of(value)} instead of an object")
    return cast(dict[str, Any], value)


def parse_json(text: str) -> Any:
    """One JSON value of any kind, read as strictly; raises NotARecordError."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        fact = f"broken JSON at character {error.pos + 1}: {error.msg[0].lower()}{error.msg[1:]}"
        raise NotARecordError(fact) from None
    except RecursionError:
        raise NotARecordError(f"nested deeper than {MAX_DEPTH} levels") from None
    except NotARecordError:
        raise
    except ValueError:  # int() refuses to read thousands of digits
        raise NotARecordError("a number has too many digits") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _require_bounded_depth(value)
    if _SURROGATE_ESCAPE.search(text):
        _require_whole_characters(value)
    return value


def kind_of(value: object) -> str:
    """What a JSON value is, in a word for messages."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, str):
        return "a text"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"


def _require_readable(path: str | Path) -> bool:
    """Whether the file holds a JSON list; DataError where it cannot be read."""
    file_path = Path(path)
    if file_path.is_dir():
        raise DataError(problem(path, "a folder", "name one file"))
    if not file_path.exists():
        fact, remedy = "no such file", "check the path, which is relative to the working directory"
        raise DataError(problem(path, fact, remedy))
    if not file_path.is_file():
        raise DataError(problem(path, "not a regular file", "copy its content to a file"))
    if file_path.suffix.lower() not in (".jsonl", ".json"):
        fact = f"its name ends in {file_path.suffix!r}" if file_path.suffix else "its name has no ending"
        remedy = "write one JSON object per line into a file whose name ends in .jsonl"
        raise DataError(problem(path, fact, remedy))
    try:
        with file_path.open("rb") as file:
            start = _start_of(file)
    except OSError as error:
        fact = f"cannot be read ({os.strerror(error.errno or 0)})"
        raise DataError(problem(path, fact, "allow reading it")) from error
    if not start:
        raise DataError(problem(path, "holds no record", "check that this is the right file"))
    first_line = start[: start.find(b"\n") + 1]  # empty where it is longer than what was read
    if first_line[:1] == b"{" and first_line.rstrip()[-1:] in (b"{", b"["):
        fact = "begins with an object that goes on over several lines"
        raise DataError(problem(path, fact, "write one object per line, or a JSON list of objects (.json)"))
    return start[:1] == b"[" and file_path.suffix.lower() == ".json"


def _start_of(file: BinaryIO) -> bytes:
    """The file from its first character that is not blank, not all of it."""
    start = file.read(_CHUNK_BYTES).removeprefix(_BYTE_ORDER_MARK).lstrip()
    while not start and (chunk := file.read(_CHUNK_BYTES)):
        start = chunk.lstrip()
    return start


def _parsed_entries(path: str | Path, *, holds_list: bool) -> Iterator[Record | BadLine]:
    num_entries = 0
    with Path(path).open("rb") as file:
        for line, entry in _list_entries(file, path) if holds_list else _line_entries(file):
            num_entries += 1
            origin = Origin(str(path), line)
            if entry is None:
                fact = f"longer than {MAX_ENTRY_BYTES:,} bytes"
                yield BadLine(origin, fact, "write one object per line, and shorter ones")
                continue
            try:
                yield Record(origin, parse_object(entry.decode()))
            except UnicodeDecodeError as error:
                bad_line = line + entry.count(b"\n", 0, error.start)
                raise DataError(
                    problem(path, f"line {bad_line} is not UTF-8 text", "save the file as UTF-8")
                ) from None
            except NotARecordError as error:
                yield BadLine(origin, str(error))
    if not num_entries:
        raise DataError(problem(path, "holds no record", "check that this is the right file"))


def _line_entries(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Every line that is not blank with its number; None stands for a line too long to be read."""
    number = 0
    while line := file.readline(MAX_ENTRY_BYTES + 1):
        number += 1
        if len(line) > MAX_ENTRY_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK_BYTES)
            yield number, None
            continue
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if stripped := line.strip():
            yield number, stripped


def _list_entries(file: BinaryIO, path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Every entry of one JSON list, found by counting brackets outside of texts, with its first line."""
    buffer, start, position, at_end = b"", 0, 0, False  # the present entry begins at buffer[start] …
    line, depth, num_entries = 1, 0, 0  # … which stands on `line`
    while True:
        token = _TOKEN.search(buffer, position)
        if not at_end and (token is None or _is_cut_off(token, buffer)):
            _require_bounded(len(buffer) - start, _line_of(buffer[start:], line), path)
            position = (token.start() if token else len(buffer)) - start
            chunk = file.read(max(_CHUNK_BYTES, len(buffer) - start))
            buffer, start, at_end = buffer[start:] + chunk, 0, not chunk
            continue
        if token is None:
            fact = f"the list does not end; its last entry begins on line {_line_of(buffer[start:], line)}"
            raise DataError(problem(path, fact, "look there for a missing bracket or quotation mark"))
        kind, position = token[0], token.end()
        opens, closes = kind in (b"[", b"{"), kind in (b"]", b"}")
        if depth == 1 and (closes or kind == b","):
            entry = buffer[start : token.start()]
            if entry.strip() or num_entries or kind == b",":
                yield _line_of(entry, line), entry.strip()
                num_entries += 1
        if (depth == 0 and opens) or (depth == 1 and kind == b","):
            line += buffer.count(b"\n", start, position)
            start = position
        depth += opens - closes
        if depth == 0 and closes:
            line += buffer.count(b"\n", start, position)
            return _require_end(file, path, kind=kind, rest=buffer[position:], line=line)


def _is_cut_off(token: re.Match[bytes], buffer: bytes) -> bool:
    """Whether a text begins here whose end was not read yet."""
    return token[0] == b'"' and buffer.find(b"\n", token.start()) < 0


def _line_of(text: bytes, line: int) -> int:
    """The line of the first character that is not blank, where `text` begins on `line`."""
    return line + text.count(b"\n", 0, len(text) - len(text.lstrip()))


def _require_bounded(size: int, line: int, path: str | Path) -> None:
    if size > MAX_ENTRY_BYTES:
        fact = f"the entry that begins on line {line} is longer than {MAX_ENTRY_BYTES:,} bytes"
        raise DataError(problem(path, fact, "look there for a missing bracket, or write shorter entries"))


def _require_end(file: BinaryIO, path: str | Path, *, kind: bytes, rest: bytes, line: int) -> None:
    if kind == b"}":
        fact = f"a bracket on line {line} closes what was not opened"
        raise DataError(problem(path, fact, "look there for a bracket too many"))
    while rest := rest or file.read(_CHUNK_BYTES):
        if rest.strip():
            fact = f"text after the end of the list, on line {_line_of(rest, line)}"
            remedy = "join everything into one list, or write one object per line into a .jsonl file"
            raise DataError(problem(path, fact, remedy))
        line += rest.count(b"\n")
        rest = b""


def _require_bounded_depth(value: object) -> None:
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [inner for outer in layer for inner in _inner_values(outer) if isinstance(inner, dict | list)]
        if not layer:
            return
    raise NotARecordError(f"nested deeper than {MAX_DEPTH} levels")


def _inner_values(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast(dict[str, object], value).values())
    return cast(list[object], value) if isinstance(value, list) else []


def _require_whole_characters(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NotARecordError(
            "half of a surrogate pair (\\ud800 to \\udfff) stands alone in a text"
        ) from None


def _object_with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise NotARecordError(f"the key {twice!r} stands twice in one object")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise NotARecordError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise NotARecordError(f"the number {text[:20]} is too large")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_with_distinct_keys, parse_constant=_refuse_constant, parse_float=_finite_float
)
