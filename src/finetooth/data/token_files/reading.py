"""Reads files of token ids that somebody else encoded and masked.

    train.bin, train_labels.bin   int32 without header, ids and labels (-100: no target) of all documents, one
                                  behind the other; meta.json beside them may count the documents
    *.h5, *.hdf5                  tokens and loss_mask in rows: data/token_files/hdf5.py
    000.pth, or a folder of them  one entry per dialogue: data/token_files/shards.py

Where no boundaries are stored, data/token_files/boundaries.py recovers them. Tokens are trained as given:
nothing is encoded again. A document that is not whole, or holds what the tokenizer does not know, is a
BadLine.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from finetooth.base.errors import DataError, problem
from finetooth.data.records import IGNORED_LABEL, GivenTokens, Origin
from finetooth.data.sources.reading import BadLine
from finetooth.data.templates.template import Template
from finetooth.data.token_files.boundaries import (
    Openings,
    Piece,
    Stretch,
    UndividableError,
    divide,
    openings_of,
)
from finetooth.data.token_files.hdf5 import read_hdf5
from finetooth.data.token_files.shards import is_shard_folder, read_shard, shards_of
from finetooth.data.tokenizer.tokenizer import Tokenizer

_ENDINGS = (".bin", ".h5", ".hdf5", ".pth", ".pt")
_CHUNK_TOKENS = 2**20
_CONTEXT, _TARGET, _WRONG = range(3)  # marks of tokens
_TOKEN_ID = np.dtype("<i4")
_MAX_META_BYTES = 2**20


def is_token_file(path: str | Path) -> bool:
    """Whether a path names token ids: a file by its ending, a folder by the shards in it."""
    return Path(path).suffix.lower() in _ENDINGS or is_shard_folder(Path(path))


def read_token_file(
    path: str | Path, *, tokenizer: Tokenizer, template: Template, single_turn: bool
) -> Iterator[GivenTokens | BadLine]:
    """Reads the documents of a token file in order; the line of an origin is the document's number from 1.

    template:    tells what opens a document, where the file stores no boundaries
    single_turn: whether every document has one question
    Raises DataError, when the iteration begins or ends, where the file is not what its name says or its
    documents cannot be told apart.
    """
    place = Path(path)
    if place.is_dir() or place.suffix.lower() in (".pth", ".pt"):
        for shard in shards_of(place) if place.is_dir() else [place]:
            yield from _shard_documents(shard, tokenizer)
        return
    openings = openings_of(template, str(path))
    is_pair = place.suffix.lower() == ".bin"
    stretches = _bin_stretches(place) if is_pair else read_hdf5(place, openings)
    num_documents = 0
    try:
        for piece in divide(stretches, openings, single_turn=single_turn):
            num_documents += 1
            yield _checked(piece, Origin(str(path), num_documents), openings, tokenizer)
    except UndividableError as error:
        raise DataError(problem(path, error.fact, error.remedy)) from error
    if is_pair:
        _require_counted(place, num_documents)


def _shard_documents(path: Path, tokenizer: Tokenizer) -> Iterator[GivenTokens | BadLine]:
    for number, dialogue in enumerate(read_shard(path), 1):
        origin = Origin(str(path), number)
        if isinstance(dialogue, str):
            yield BadLine(origin, dialogue)
            continue
        token_ids, num_targets = dialogue
        marks = np.full(len(token_ids), _CONTEXT, np.int8)
        marks[len(token_ids) - num_targets :] = _TARGET
        yield _given(token_ids, marks, origin, tokenizer)


def _checked(piece: Piece, origin: Origin, openings: Openings, tokenizer: Tokenizer) -> GivenTokens | BadLine:
    whole = "write the file anew with whole documents"
    if not piece.opens:
        return BadLine(origin, f"{len(piece.token_ids):,} tokens whose beginning is missing", whole)
    if piece.is_last and not openings.ends_turn(piece.token_ids):
        return BadLine(origin, "its end is missing: the file ends without an end token", whole)
    return _given(piece.token_ids, piece.marks, origin, tokenizer)


def _given(
    token_ids: np.ndarray, marks: np.ndarray, origin: Origin, tokenizer: Tokenizer
) -> GivenTokens | BadLine:
    foreign = token_ids[(token_ids < 0) | (token_ids > tokenizer.largest_id)]
    if len(foreign):
        fact = f"token {int(foreign[0])} is none of the tokenizer's, which end at {tokenizer.largest_id}"
        return BadLine(origin, fact, "use the tokenizer that wrote the file; ids must be int32")
    wrong = np.flatnonzero(marks == _WRONG)
    if len(wrong):
        fact = f"the label of its token {int(wrong[0]) + 1} is neither the token nor {IGNORED_LABEL}"
        return BadLine(origin, fact)
    loss_weights = (marks == _TARGET).astype(np.float32)
    loss_weights[0] = 0  # nothing within the document predicts it
    return GivenTokens(token_ids.astype(np.int32), loss_weights, origin)


def _bin_stretches(path: Path) -> Iterator[Stretch]:
    labels_path = path.with_name(f"{path.stem}_labels.bin")
    num_tokens = _require_pair(path, labels_path)
    with path.open("rb") as ids_file, labels_path.open("rb") as labels_file:
        for start in range(0, num_tokens, _CHUNK_TOKENS):
            count = min(_CHUNK_TOKENS, num_tokens - start)
            token_ids = np.fromfile(ids_file, _TOKEN_ID, count)
            labels = np.fromfile(labels_file, _TOKEN_ID, count)
            if len(token_ids) != count or len(labels) != count:
                raise DataError(problem(path, "became shorter while it was read", "run again"))
            if start == 0:
                _require_aligned(token_ids, labels, labels_path)
            marks = np.where(labels == token_ids, _TARGET, _WRONG).astype(np.int8)
            marks[labels == IGNORED_LABEL] = _CONTEXT
            yield Stretch(token_ids, marks, is_start=start == 0)


def _require_pair(path: Path, labels_path: Path) -> int:
    """How many tokens both files hold."""
    if path.stem.endswith("_labels"):
        tokens_name = path.with_name(path.name.replace("_labels", "")).name
        raise DataError(
            problem(path, "holds labels, not tokens", f"name {tokens_name}, its labels are found")
        )
    problems: list[str] = []
    for file in (path, labels_path):
        size = _size_of(file)
        if size is None:
            fact = "not a file that can be read" if file.exists() else "no such file"
            remedy = "put it there: it says what is trained" if file == labels_path else "check the path"
            problems.append(problem(file, fact, remedy))
        elif size % _TOKEN_ID.itemsize or not size:
            fact = f"{size:,} bytes, which are no int32 numbers"
            problems.append(problem(file, fact, "write it anew, as int32 without header"))
    if problems:
        raise DataError(problems)
    sizes = path.stat().st_size, labels_path.stat().st_size
    if sizes[0] != sizes[1]:
        fact = f"{sizes[0] // 4:,} tokens, but {labels_path.name} has {sizes[1] // 4:,} labels"
        raise DataError(problem(path, fact, "write both anew, one label per token"))
    return sizes[0] // _TOKEN_ID.itemsize


def _size_of(file: Path) -> int | None:
    """The size of a regular file that may be read, else None."""
    return file.stat().st_size if file.is_file() and os.access(file, os.R_OK) else None


def _require_aligned(token_ids: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Refuses labels that stand one token early, as for a loss that does not shift."""
    is_trained = labels[:-1] != IGNORED_LABEL
    if not is_trained.any() or np.array_equal(labels[:-1][is_trained], token_ids[:-1][is_trained]):
        return
    if np.array_equal(labels[:-1][is_trained], token_ids[1:][is_trained]):
        fact = "each label names the token behind it"
        raise DataError(problem(path, fact, "write labels that equal the tokens they stand on"))


def _require_counted(path: Path, num_documents: int) -> None:
    """Holds what was found against the counts of meta.json, where there is one."""
    try:
        counted = _counts_of(path)
    except OSError:
        return
    if counted is not None and counted != num_documents:
        fact = f"{num_documents:,} documents were found, but meta.json counts {counted:,}"
        remedy = "write it as .jsonl with input_ids and labels, or correct meta.json"
        raise DataError(problem(path, fact, remedy))


def _counts_of(path: Path) -> int | None:
    with path.with_name("meta.json").open("rb") as file:
        content = file.read(_MAX_META_BYTES)
    try:
        meta = cast(dict[str, Any], json.loads(content))
        num_examples = meta[path.stem]["num_examples"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return num_examples if type(num_examples) is int else None
