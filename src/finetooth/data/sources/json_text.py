"""Records in JSON: one object per line, or one list of objects; read strictly.

What JSON readers disagree about is refused: NaN, infinity, a key twice in one object, half a surrogate pair,
deep nesting. Text is UTF-8, with or without a byte-order mark; blank lines are skipped.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from finetooth.base.errors import DataError, problem
from finetooth.data.sources import lines
from finetooth.data.sources.lines import not_utf8, numbered_lines, opened

MAX_DEPTH = 100

# JSON has no raw line break within quotes, so a lone quotation mark begins a broken or cut-off text.
_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|["\[\]{},]')
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_FIRST_LIST = re.compile(rb'"([^"\\\n]+)"\s*:\s*\[')


class NotARecordError(ValueError):
    """An entry that is no record: the message is the fact to be told."""

    def __init__(self, fact: str, remedy: str = "correct or remove it"):
        super().__init__(fact)
        self.remedy = remedy


Entry = tuple[int, dict[str, Any] | NotARecordError]
"""What stands at a line (or row) of a file: the fields of a record, or why it is none."""


def json_entries(path: str | Path, *, may_be_list: bool) -> Iterator[Entry]:
    """The entries of a file in order, each with the line it begins on.

    may_be_list: whether a file that begins with a bracket is one list; else it is read by lines.

    Raises DataError, in part while it is read, where the file is empty, not UTF-8, begins with an object
    over several lines, or where its list does not end.
    """
    with opened(path) as file:
        start = _start_of(file)
    if not start:
        raise DataError(problem(path, "holds no record", "check that this is the right file"))
    first_line = start[: start.find(b"\n") + 1]  # empty where it is longer than what was read
    if first_line[:1] == b"{" and first_line.rstrip()[-1:] in (b"{", b"["):
        raise DataError(_over_several_lines(path, start))
    return _parsed_entries(path, holds_list=may_be_list and start[:1] == b"[")


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


def _start_of(file: BinaryIO) -> bytes:
    """The file from its first character that is not blank, not all of it."""
    start = file.read(lines.CHUNK_BYTES).lstrip()
    while not start and (chunk := file.read(lines.CHUNK_BYTES)):
        start = chunk.lstrip()
    return start


def _over_several_lines(path: str | Path, start: bytes) -> str:
    remedy = "write one object per line, or a JSON list of objects (.json)"
    if (found := _FIRST_LIST.search(start)) and found[1].isalnum():
        remedy += f"; if its {found[1].decode()!r} holds the records, write only that list"
    return problem(path, "begins with an object that goes on over several lines", remedy)


def _parsed_entries(path: str | Path, *, holds_list: bool) -> Iterator[Entry]:
    with opened(path) as file:
        for line, entry in _list_entries(file, path) if holds_list else _line_entries(file):
            if entry is None:
                fact = f"longer than {lines.MAX_ENTRY_BYTES:,} bytes"
                yield line, NotARecordError(fact, "write one object per line, and shorter ones")
                continue
            try:
                yield line, parse_object(entry.decode())
            except UnicodeDecodeError as error:
                raise not_utf8(path, line + entry.count(b"\n", 0, error.start)) from None
            except NotARecordError as error:
                yield line, error


def _line_entries(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Every line that is not blank; None stands for a line too long to be held."""
    for number, line in numbered_lines(file):
        if line is None:
            yield number, None
        elif stripped := line.strip():
            yield number, stripped


def _list_entries(file: BinaryIO, path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Every entry of one JSON list, found by counting brackets outside of texts, with its first line."""
    buffer, start, position, at_end = b"", 0, 0, False  # the present entry begins at buffer[start] …
    line, depth, num_entries = 1, 0, 0  # … which stands on `line`
    while True:
        token = _TOKEN.search(buffer, position)
        if not at_end and (token is None or _is_cut_off(token, buffer)):
            held = len(buffer) - start
            _require_bounded(held, _line_of(buffer[start:], line), path)
            position = (token.start() if token else len(buffer)) - start
            # as much again as is held, so that a long entry is not copied many times, up to the bound
            chunk = file.read(max(lines.CHUNK_BYTES, min(held, lines.MAX_ENTRY_BYTES - held)))
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
    if size > lines.MAX_ENTRY_BYTES:
        fact = f"the entry that begins on line {line} is longer than {lines.MAX_ENTRY_BYTES:,} bytes"
        raise DataError(problem(path, fact, "look there for a missing bracket, or write shorter entries"))


def _require_end(file: BinaryIO, path: str | Path, *, kind: bytes, rest: bytes, line: int) -> None:
    if kind == b"}":
        fact = f"a bracket on line {line} closes what was not opened"
        raise DataError(problem(path, fact, "look there for a bracket too many"))
    while rest := rest or file.read(lines.CHUNK_BYTES):
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
