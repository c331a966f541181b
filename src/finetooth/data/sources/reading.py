"""Records read from a file one after the other, in memory that does not grow with the file.

    .jsonl .ndjson     one JSON object per line
    .json              the same, or one JSON list of objects
    .csv .tsv          a header row, then one record per row; all values are texts
    .parquet           one record per row; needs the extra `parquet`
    .arrow .feather    the same

Text files may be compressed (`.jsonl.gz`). A `.txt` file is refused, because nobody can tell whether its
lines or its whole is a record: write {"text": …} objects. A record's line is the one it begins on, or the
next one that no earlier record has.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetooth.base.errors import DataError, problem
from finetooth.data.records import Origin, Record
from finetooth.data.sources.columnar import columnar_entries
from finetooth.data.sources.csv_text import csv_entries
from finetooth.data.sources.json_text import (
    Entry,
    NotARecordError,
    json_entries,
    kind_of,
    parse_json,
    parse_object,
)

__all__ = ["BadLine", "NotARecordError", "kind_of", "parse_json", "parse_object", "read_records"]

COMPRESSED = ".gz"
TEXT_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
COLUMNAR_ENDINGS = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True, slots=True)
class BadLine:
    """An entry of a file that is no record, and why."""

    origin: Origin
    fact: str
    remedy: str = "correct or remove it"


def read_records(path: str | Path) -> Iterator[Record | BadLine]:
    """Reads one file of a kind above; yields in order a Record per object or row, a BadLine per other entry.

    Raises DataError, with the path as given, where the file is missing, no file, unreadable, empty, of
    another kind, not UTF-8, begins with an object over several lines, or is damaged or cut off.

        {"prompt": "2+2?", "response": "4"}      Record(origin t.jsonl:1, fields {"prompt": …})
                                                 (blank: skipped)
        {"prompt": NaN}                          BadLine(origin t.jsonl:3, "NaN is not JSON")
    """
    require_file(path)
    return _records(path, _entries(path))


def require_file(path: str | Path) -> None:
    """Raises DataError where a path is no file that can be read again and again, such as a pipe."""
    file_path = Path(path)
    if file_path.is_dir():
        raise DataError(problem(path, "a folder", "name one file"))
    if not file_path.exists():
        fact, remedy = "no such file", "check the path, which is relative to the working directory"
        raise DataError(problem(path, fact, remedy))
    if not file_path.is_file():
        raise DataError(problem(path, "not a regular file", "copy its content to a file"))


def ending_of(path: str | Path) -> str:
    """The ending that tells what a file holds, in small letters.

    >>> ending_of("a/train.JSONL"), ending_of("train.json.gz"), ending_of("b")
    ('.jsonl', '.json.gz', '')
    """
    stem, ending = os.path.splitext(str(path).lower())
    return os.path.splitext(stem)[1] + ending if ending == COMPRESSED else ending


def _entries(path: str | Path) -> Iterator[Entry]:
    ending = ending_of(path)
    if ending in COLUMNAR_ENDINGS:
        return columnar_entries(path, is_parquet=ending == ".parquet")
    if (text_ending := ending.removesuffix(COMPRESSED)) not in TEXT_ENDINGS:
        fact = f"its name ends in {ending!r}" if ending else "its name has no ending"
        remedy = "write one JSON object per line into a file whose name ends in .jsonl"
        raise DataError(problem(path, fact, remedy))
    if text_ending in (".csv", ".tsv"):
        return csv_entries(path, separator="\t" if text_ending == ".tsv" else ",")
    return json_entries(path, may_be_list=text_ending == ".json")


def _records(path: str | Path, entries: Iterator[Entry]) -> Iterator[Record | BadLine]:
    place, last = str(path), 0
    for line, entry in entries:
        # Where several begin on one line, as in a list without line breaks, each has a place of its own.
        last = max(line, last + 1)
        origin = Origin(place, last)
        if isinstance(entry, NotARecordError):
            yield BadLine(origin, str(entry), entry.remedy)
        else:
            yield Record(origin, entry)
    if not last:
        raise DataError(problem(path, "holds no record", "check that this is the right file"))
