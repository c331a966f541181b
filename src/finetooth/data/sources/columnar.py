"""Records in Parquet and Arrow files (Feather, and what `datasets` saves), read in batches of rows.

Values become what JSON knows: texts, numbers, true, false, null, lists and objects (a map becomes an object).
Dates, times and decimal numbers become the text that Arrow writes for them. A row with NaN, an infinity,
binary data or another value that JSON lacks is no record.
"""

import contextlib
import importlib
import math
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

from finetooth.base.errors import DataError, problem
from finetooth.data.sources import lines
from finetooth.data.sources.json_text import Entry, NotARecordError

_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_ROWS = 256
_FILE_MAGIC = b"ARROW1"
_END_MARKS = (8, 4)  # bytes that end a stream, now and in files written before 2019
_AGAIN = "write or copy it again"


def columnar_entries(path: str | Path, *, is_parquet: bool) -> Iterator[Entry]:
    """The rows of a file in order, each with its number, counted from 1.

    Raises DataError, in part while it is read, where pyarrow is not installed, where the file is damaged, cut
    off or of another kind, and where two columns have one name.
    """
    try:
        pyarrow = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        remedy = "pip install 'finetooth[parquet]'"
        raise DataError(problem(path, "needs pyarrow, which is not installed", remedy)) from error
    opened = _opened_parquet if is_parquet else _opened_arrow
    with _told(path, pyarrow), opened(path, pyarrow) as (schema, _):
        _require_columns(path, schema)
    return _entries(path, opened, pyarrow)


def _entries(path: str | Path, opened: Any, pyarrow: Any) -> Iterator[Entry]:
    number = 0
    with _told(path, pyarrow), opened(path, pyarrow) as (schema, batches):
        target = pyarrow.schema([pyarrow.field(f.name, _as_text(f.type, pyarrow)) for f in schema])
        is_plain = all(_is_plain(field.type, pyarrow) for field in target)
        for batch in batches:
            batch.validate(full=True)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                rows = batch.slice(start, _BATCH_ROWS).cast(target)
                for row, fields in enumerate(rows.to_pylist(maps_as_pydicts="strict")):
                    number += 1
                    size = rows.slice(row, 1).nbytes if rows.nbytes > lines.MAX_ENTRY_BYTES else 0
                    yield number, _record(fields, size=size, is_plain=is_plain)


@contextlib.contextmanager
def _told(path: str | Path, pyarrow: Any) -> Generator[None]:
    """What pyarrow raises over a file becomes a DataError."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:
            fact, remedy = f"cannot be read ({os.strerror(error.errno)})", "allow reading it"
        else:
            fact, remedy = f"damaged, or of another kind than its name says ({_first_line(error)})", _AGAIN
        raise DataError(problem(path, fact, remedy)) from error


@contextlib.contextmanager
def _opened_parquet(path: str | Path, pyarrow: Any) -> Generator[tuple[Any, Iterator[Any]]]:
    # Without a buffer of its own, pyarrow reads the whole of a row group at once.
    with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=64 * 1024) as file:
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
        bytes_per_row = sum(sizes) // max(file.metadata.num_rows, 1)
        batch_size = min(max(_BATCH_BYTES // max(bytes_per_row, 1), 1), _BATCH_ROWS)
        yield file.schema_arrow, file.iter_batches(batch_size=batch_size, use_threads=False)


@contextlib.contextmanager
def _opened_arrow(path: str | Path, pyarrow: Any) -> Generator[tuple[Any, Iterator[Any]]]:
    with pyarrow.OSFile(os.fspath(path)) as file:
        if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
            reader = pyarrow.ipc.open_file(file)
            yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            reader = pyarrow.ipc.open_stream(file)
            yield reader.schema, _batches_to_the_end(reader, file, path)


def _batches_to_the_end(reader: Any, file: Any, path: str | Path) -> Iterator[Any]:
    """The batches of a stream, whose reader is content where a stream is cut off or another one follows."""
    end_of_batch = file.tell()
    for batch in reader:
        end_of_batch = file.tell()
        yield batch
    end = file.tell()
    if end - end_of_batch not in _END_MARKS:
        raise DataError(problem(path, "the mark that ends an Arrow stream is missing", _AGAIN))
    if end != file.size():
        raise DataError(problem(path, "data behind the end of the Arrow stream", "keep one stream per file"))


def _require_columns(path: str | Path, schema: Any) -> None:
    names = cast(list[str], schema.names)
    if not names:
        raise DataError(problem(path, "has no columns", "check that this is the right file"))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fact = f"several columns are named {', '.join(map(repr, twice))}"
        raise DataError(problem(path, fact, "rename or remove all but one"))


def _as_text(type: Any, pyarrow: Any) -> Any:
    """The type with dates, times and decimal numbers in it replaced by text."""
    types = pyarrow.types
    if types.is_timestamp(type) or types.is_date(type) or types.is_time(type) or types.is_decimal(type):
        return pyarrow.string()
    if types.is_struct(type):
        return pyarrow.struct([field.with_type(_as_text(field.type, pyarrow)) for field in type.fields])
    for is_list, list_of in ((types.is_list, pyarrow.list_), (types.is_large_list, pyarrow.large_list)):
        if is_list(type):
            return list_of(type.value_field.with_type(_as_text(type.value_type, pyarrow)))
    return type


def _is_plain(type: Any, pyarrow: Any) -> bool:
    """Whether no value of this type needs to be looked at."""
    types = pyarrow.types
    if types.is_struct(type):
        return all(_is_plain(field.type, pyarrow) for field in type.fields)
    if types.is_list(type) or types.is_large_list(type):
        return _is_plain(type.value_type, pyarrow)
    kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean, types.is_null)
    return any(is_kind(type) for is_kind in kinds)


def _record(fields: dict[str, Any], *, size: int, is_plain: bool) -> dict[str, Any] | NotARecordError:
    if size > lines.MAX_ENTRY_BYTES:
        return NotARecordError(f"longer than {lines.MAX_ENTRY_BYTES:,} bytes", "write shorter rows")
    if is_plain:
        return fields
    try:
        return {name: _as_json(value, name) for name, value in fields.items()}
    except NotARecordError as error:
        return error


def _as_json(value: Any, column: str) -> Any:
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list):
        return [_as_json(inner, column) for inner in cast(list[Any], value)]
    fact = f"{_in_words(value)} in column {column!r}"
    if isinstance(value, dict):
        fields = cast(dict[object, Any], value)
        if all(isinstance(name, str) for name in fields):
            return {name: _as_json(inner, column) for name, inner in fields.items()}
        fact = f"a map in column {column!r} whose keys are not texts"
    raise NotARecordError(fact, "correct it, or leave the column out")


def _in_words(value: object) -> str:
    if isinstance(value, float):
        return f"{value!r}"
    return "binary data" if isinstance(value, bytes) else f"a value of type {type(value).__name__}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
