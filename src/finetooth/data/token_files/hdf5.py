"""Reads rows of packed tokens from HDF5 files.

    tokens      integers [rows, T]   the documents one behind the other, cut at the ends of rows
    loss_mask   0 or 1 [rows, T]     1 on a trained token itself

The rows are joined again. What fills the end of a row is left out where it cannot be content: tokens of one
kind (the padding token, the end token or 0) that are not trained, stand behind the end of a turn, and are
followed by a row that opens a document, by more of them, or by nothing. Of end tokens the first one stays
where it may end a turn. A padding token that is a control token and ends no turn is never content.
"""

import importlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.data.token_files.boundaries import Openings, Stretch

MAX_ROW_TOKENS = 2**22
MAX_CHUNK_BYTES = 2**26
SLICE_TOKENS = 2**20
ROWS_AT_ONCE = 64

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
_MOST_COMPRESSION = 1100  # gzip makes zeros 1,032 times smaller

Row = tuple[np.ndarray, np.ndarray]


def read_hdf5(path: Path, openings: Openings) -> Iterator[Stretch]:
    """The tokens of a file without padding; marks are 1 where a token is trained.

    Raises DataError where the file is damaged, holds something else, or refers to other files or programs.
    """
    padding = _Padding(openings)
    before = np.empty(0, np.int64)
    is_start = True
    gathered: list[Row] = []
    for (token_ids, mask), following in _with_following(_rows(path)):
        end = padding.begin(token_ids, mask, before=before, following=following)
        gathered.append((token_ids[:end], mask[:end]))
        before = np.concatenate([before, token_ids[:end]])[-2:]
        is_padded = end < len(token_ids)
        if is_padded or len(gathered) == ROWS_AT_ONCE or following is None:
            stretch = Stretch(*map(np.concatenate, zip(*gathered, strict=True)), is_start=is_start)
            if len(stretch.token_ids):
                yield stretch
            is_start = is_padded
            gathered = []


def import_h5py(place: object) -> Any:
    """The library h5py, which only HDF5 files need; ConfigError where it is not installed."""
    try:
        return importlib.import_module("h5py")
    except ImportError:
        fact, remedy = "HDF5 files need h5py", "pip install 'finetooth[hdf5]'"
        raise ConfigError(problem(place, fact, remedy)) from None


class _Padding:
    """What may fill the ends of rows."""

    def __init__(self, openings: Openings):
        tokenizer = openings.tokenizer
        never = {prefix[0] for _, prefix, _ in openings.headers}
        control = set(tokenizer.control_tokens.values())
        self.openings = openings
        self.ends = set(openings.end_tokens.tolist())
        self.fillers = {0, tokenizer.pad_token_id, tokenizer.eos_token_id} - never - {None}
        self.never_content = (self.fillers & control) - self.ends

    def begin(
        self, token_ids: np.ndarray, mask: np.ndarray, *, before: np.ndarray, following: np.ndarray | None
    ) -> int:
        """Where the padding of a row [T] begins; its length where it has none.

        before:    the last two tokens of the stream before the row, fewer at its start
        following: the token ids of the next row
        """
        filler = int(token_ids[-1])
        if filler not in self.fillers or mask[-1]:
            return len(token_ids)
        is_content = np.flatnonzero((token_ids != filler) | (mask != 0))
        begin = int(is_content[-1]) + 1 if len(is_content) else 0
        if filler in self.never_content:
            return begin
        content = np.concatenate([before, token_ids[:begin]])
        if len(content) and not self.openings.ends_turn(content):
            if filler not in self.ends:
                return len(token_ids)
            begin += 1  # the first one ends the turn
        return begin if self._may_follow(following, filler) else len(token_ids)

    def _may_follow(self, following: np.ndarray | None, filler: int) -> bool:
        if following is None or np.all(following == filler):
            return True
        return self.openings.opens_at_start(following)


def _with_following(rows: Iterator[Row]) -> Iterator[tuple[Row, np.ndarray | None]]:
    """Every row with the token ids of the next one."""
    held: Row | None = None
    for row in rows:
        if held is not None:
            yield held, row[0]
        held = row
    if held is not None:
        yield held, None


def _rows(path: Path) -> Iterator[Row]:
    """Token ids [T] and mask int8 [T] of every row; memory holds a slice of them."""
    with _opened(path) as (tokens, masks):
        num_rows, row_tokens = tokens.shape
        rows_per_slice = max(1, SLICE_TOKENS // row_tokens)
        for start in range(0, num_rows, rows_per_slice):
            end = min(num_rows, start + rows_per_slice)
            with _told(path):
                token_ids, mask = tokens[start:end], masks[start:end]
            wrong = np.argwhere((mask != 0) & (mask != 1))
            if len(wrong):
                row, column = wrong[0]
                fact = f"loss_mask is {mask[row, column]} in row {start + int(row) + 1}"
                raise DataError(problem(path, fact, "write 1 where a token is trained, else 0"))
            yield from zip(token_ids, mask.astype(np.int8), strict=True)


@contextmanager
def _opened(path: Path) -> Generator[tuple[Any, Any]]:
    h5py = import_h5py(path)
    if not path.is_file():
        raise DataError(problem(path, "no such file", "check the path"))
    with _told(path):
        file = h5py.File(path, "r")
    with file:
        with _told(path):
            datasets = [_dataset(file, name, path) for name in ("tokens", "loss_mask")]
        tokens, masks = datasets
        if tokens.shape != masks.shape:
            fact = f"tokens have the shape {tokens.shape}, loss_mask has {masks.shape}"
            raise DataError(problem(path, fact, "write both anew, one mask per token"))
        yield tokens, masks


@contextmanager
def _told(path: Path) -> Generator[None]:
    """What the library says about damage, as a sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        fact = "not an HDF5 file, or damaged"
        raise DataError(problem(path, fact, "copy it again or write it anew")) from error


def _dataset(file: Any, name: str, path: Path) -> Any:
    """A dataset that lies in this file and needs nothing else to be read."""
    h5py = import_h5py(path)
    link = file.get(name, getlink=True)
    if link is None:
        raise DataError(problem(path, f"holds no {name!r}", "write tokens and loss_mask"))
    if not isinstance(link, h5py.HardLink):
        raise DataError(problem(path, f"{name!r} is a link", "copy what it leads to into the file"))
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(problem(path, f"{name!r} is a group", "write tokens and loss_mask as datasets"))
    fact = _unreadable(dataset)
    if fact:
        raise DataError(problem(path, f"{name!r} {fact}", "write it anew, plain or with gzip"))
    return dataset


def _unreadable(dataset: Any) -> str | None:
    """Why a dataset is not read, if it is not."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    unknown = [code for code in filters if code not in _FILTERS]
    if dataset.is_virtual:
        return "is put together from other files"
    if dataset.external:
        return "lies in other files"
    if unknown:
        return f"is packed with filter {unknown[0]}, a program of its own"
    if dataset.dtype.kind not in "iub" or dataset.dtype.itemsize > 8:
        return f"holds {dataset.dtype.name} instead of integers"
    shape = dataset.shape
    if shape is None or len(shape) != 2 or not all(shape) or shape[1] > MAX_ROW_TOKENS:
        return f"has the shape {shape} instead of (rows, tokens)"
    chunk_tokens = np.prod([float(side) for side in dataset.chunks or (1,)])
    if chunk_tokens * dataset.dtype.itemsize > MAX_CHUNK_BYTES:
        return f"is packed in chunks of {chunk_tokens:,.0f} numbers"
    stored = dataset.id.get_storage_size()
    if float(shape[0]) * shape[1] * dataset.dtype.itemsize > _MOST_COMPRESSION * stored:
        return f"declares {shape[0]:,} × {shape[1]:,} numbers, but stores {stored:,} bytes"
    return None
