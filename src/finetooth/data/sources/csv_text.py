"""Records in CSV and TSV files: a header row with the names, then one record per row, all values texts.

Values are quoted as RFC 4180 says: a quoted value may hold line breaks, and a quotation mark in it is
doubled. Text is UTF-8, with or without a byte-order mark; blank lines are skipped; an empty cell is "".
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from finetooth.base.errors import DataError, problem
from finetooth.data.sources import lines
from finetooth.data.sources.json_text import Entry, NotARecordError
from finetooth.data.sources.lines import not_utf8, numbered_lines, opened


def csv_entries(path: str | Path, *, separator: str) -> Iterator[Entry]:
    """The rows of a file in order, each with the line it begins on; separator: "," or a tab.

    Raises DataError, in part while it is read: where the header is missing, leaves a name out or has one
    twice, where the file is not UTF-8, and where its quotation marks do not pair: behind these nobody can
    tell where a row begins.
    """
    with opened(path) as file:
        header = next(_rows(file, path, separator), None)
    if header is None:
        raise DataError(problem(path, "holds no record", "check that this is the right file"))
    _require_names(path, *header)
    return _entries(path, separator)


def _entries(path: str | Path, separator: str) -> Iterator[Entry]:
    with opened(path) as file:
        rows = _rows(file, path, separator)
        _, names = next(rows)
        for line, values in rows:
            if len(values) != len(names):
                yield line, NotARecordError(f"{len(values)} values in {len(names)} columns")
            elif any("\0" in value for value in values):
                yield line, NotARecordError("a NUL character in the row")
            else:
                yield line, dict(zip(names, values, strict=True))


def _require_names(path: str | Path, line: int, names: list[str]) -> None:
    place = f"{path}:{line}"
    if any("\0" in name for name in names):
        raise DataError(problem(place, "a NUL character in the header", "save the file as UTF-8 text"))
    problems: list[str] = []
    for number, name in enumerate(names, start=1):
        if not name.strip():
            remedy = "name it, or write the file without a column of row numbers"
            problems.append(problem(place, f"column {number} has no name", remedy))
        elif name in names[: number - 1]:
            fact = f"columns {names.index(name) + 1} and {number} are both named {name!r}"
            problems.append(problem(place, fact, "rename or remove one"))
    if problems:
        raise DataError(problems)


def _rows(file: BinaryIO, path: str | Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not blank, with the line it begins on."""
    csv.field_size_limit(lines.MAX_ENTRY_BYTES)  # the module's own limit is 128 KiB
    text = _Text(file, path)
    reader = csv.reader(text, delimiter=separator, strict=True)
    while True:
        text.begin_row()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(problem(f"{path}:{text.first_line}", *_in_words(error))) from None
        if row is None:
            return
        if len(row) > 1 or (row and (row[0].strip() or text.has_quotes)):
            yield text.first_line, row


def _in_words(error: csv.Error) -> tuple[str, str]:
    if "unexpected end" in str(error):
        return "the row has a quoted value that does not end", "close its quotation mark"
    if "new-line" in str(error):
        return "the row has a carriage return outside of quotes", "end rows with a line break"
    fact = "the row has a quoted value that goes on behind its closing quotation mark"
    return fact, "double each quotation mark within a quoted value"


class _Text:
    """The lines of a file for the csv module, which asks for as many as a row has."""

    def __init__(self, file: BinaryIO, path: str | Path):
        self._lines = numbered_lines(file)
        self._path = path
        self.begin_row()

    def begin_row(self) -> None:
        self.first_line = 0
        self.has_quotes = False
        self._num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.first_line = self.first_line or number
        self._num_bytes += len(line or b"")
        if line is None or self._num_bytes > lines.MAX_ENTRY_BYTES:
            fact = f"a row longer than {lines.MAX_ENTRY_BYTES:,} bytes"
            remedy = "look there for a quotation mark that is not closed, or write shorter rows"
            raise DataError(problem(f"{self._path}:{self.first_line}", fact, remedy))
        self.has_quotes = self.has_quotes or b'"' in line
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise not_utf8(self._path, number) from None
