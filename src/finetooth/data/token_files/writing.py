"""Writes prepared documents as files of token ids that other systems read.

    jsonl   train.jsonl, val.jsonl: {"input_ids": […], "labels": […]}, a label is the token or -100
    bin     train.bin, train_labels.bin, val.bin, val_labels.bin: the same as int32 without header, one
            document behind the other, without boundaries
    h5      sft_packed.h5, sft_dev_packed.h5: tokens int32 and loss_mask int8 [rows, row length]; documents
            are laid into rows in their order, none is cut, and padding tokens fill the rest of a row

Beside them stands meta.json with the counts. In bin and h5, newlines behind the last end token are left off,
where they are not trained: otherwise one document would seem to go on with the next. What was written without
boundaries is read back and compared before the folder appears.
"""

import contextlib
import itertools
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.base.files import new_folder
from finetooth.data.records import IGNORED_LABEL, Document, DocumentSource, GivenTokens
from finetooth.data.sources.reading import BadLine
from finetooth.data.templates.template import Template
from finetooth.data.token_files.boundaries import Openings, openings_of
from finetooth.data.token_files.hdf5 import import_h5py
from finetooth.data.token_files.reading import read_token_file
from finetooth.data.tokenizer.tokenizer import Tokenizer

Layout = Literal["h5", "bin", "jsonl"]

_NAMES = {
    ("h5", "train"): "sft_packed.h5",
    ("h5", "dev"): "sft_dev_packed.h5",
    ("bin", "train"): "train.bin",
    ("bin", "dev"): "val.bin",
    ("jsonl", "train"): "train.jsonl",
    ("jsonl", "dev"): "val.jsonl",
}
_HDF5_TYPES = {"tokens": np.dtype("<i4"), "loss_mask": np.dtype("i1")}


@dataclass(frozen=True, slots=True)
class Export:
    """What is written: the folder, which must not exist yet, the layout, and the tokens per row of h5."""

    folder: Path
    layout: Layout
    row_length: int = 1024


def write_token_files(
    export: Export, documents: Mapping[str, DocumentSource], *, template: Template, single_turn: bool
) -> dict[str, Any]:
    """Writes the documents of "train" and, where there are some, "dev"; returns what meta.json holds.

    single_turn: whether every document has one question, for reading back what stores no boundaries
    Raises ConfigError where the folder exists already, DataError with every document that the layout cannot
    express, and where the documents could not be told apart again.
    """
    folder, layout = export.folder, export.layout
    if layout == "h5":
        import_h5py("--to h5")
    require_new(folder)
    _require_expressible(documents, export)
    try:
        with new_folder(folder) as partial:
            for split, source in documents.items():
                path = partial / _NAMES[layout, split]
                with _naming(folder, partial):
                    _write(path, source, export, template)
                    if layout != "jsonl":
                        _require_same(path, source, template, single_turn=single_turn)
            lengths = {split: _lengths(source, layout, template) for split, source in documents.items()}
            meta = _meta(lengths, template)
            (partial / "meta.json").write_text(json.dumps(meta, indent=2))
    except FileExistsError:
        require_new(folder)
        raise
    return meta


def require_new(folder: Path) -> None:
    """Raises ConfigError where there is something at the place of a folder to be written."""
    if folder.exists() or folder.is_symlink():
        raise ConfigError(problem("--out", f"{folder} exists already", "name another folder"))


@contextlib.contextmanager
def _naming(folder: Path, partial: Path) -> Generator[None]:
    """Errors name the folder that was asked for, not the one that is being written."""
    try:
        yield
    except DataError as error:
        raise DataError([text.replace(str(partial), str(folder)) for text in error.problems]) from error


def _require_expressible(documents: Mapping[str, DocumentSource], export: Export) -> None:
    problems: list[str] = []
    for source in documents.values():
        for number, length in enumerate(source.lengths):
            document = source.document(number)
            odd = document.loss_weights[(document.loss_weights != 0) & (document.loss_weights != 1)]
            if len(odd):
                fact = f"loss weight {odd[0]:g}, but {export.layout} knows trained and not trained only"
                problems.append(problem(document.origin, fact, "give its turns the weights 0 or 1"))
            if export.layout == "h5" and length > export.row_length:
                fact = f"{length:,} tokens do not fit into a row of {export.row_length:,}, and none is cut"
                problems.append(problem(document.origin, fact, "raise --row-length or lower data.max_length"))
    if problems:
        raise DataError(problems)


def _write(path: Path, source: DocumentSource, export: Export, template: Template) -> None:
    if export.layout == "jsonl":
        return _write_jsonl(path, _documents(source, None))
    openings = openings_of(template, str(path))
    if export.layout == "bin":
        return _write_bin(path, _documents(source, openings))

    def rows() -> Iterator[np.ndarray]:
        return _rows(_documents(source, openings), template.tokenizer, export.row_length)

    return _write_hdf5(path, rows(), (sum(1 for _ in rows()), export.row_length))


def _documents(source: DocumentSource, openings: Openings | None) -> Iterator[Document]:
    for number in range(len(source.lengths)):
        document = source.document(number)
        yield document if openings is None else _without_last_newline(document, openings)


def _without_last_newline(document: Document, openings: Openings) -> Document:
    """A document without the newline behind its last end token, where that is not trained."""
    token_ids, weights = document.token_ids, document.loss_weights
    ends = np.flatnonzero(np.isin(token_ids, openings.end_tokens))
    is_bare = len(ends) == 0 or ends[-1] != len(token_ids) - 2 or weights[-1] != 0
    if openings.style != "tight" or is_bare or not openings.ends_turn(token_ids):
        return document
    prompt_length = min(document.prompt_length, len(token_ids) - 1)
    return Document(token_ids[:-1], weights[:-1], prompt_length, document.origin)


def _labels(document: Document) -> np.ndarray:
    return np.where(document.loss_weights > 0, document.token_ids, IGNORED_LABEL)


def _write_jsonl(path: Path, documents: Iterable[Document]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            fields = {"input_ids": document.token_ids.tolist(), "labels": _labels(document).tolist()}
            file.write(json.dumps(fields) + "\n")


def _write_bin(path: Path, documents: Iterable[Document]) -> None:
    with path.open("wb") as ids_file, path.with_name(f"{path.stem}_labels.bin").open("wb") as labels_file:
        for document in documents:
            ids_file.write(document.token_ids.astype("<i4").tobytes())
            labels_file.write(_labels(document).astype("<i4").tobytes())


def _rows(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> Iterator[np.ndarray]:
    """Documents laid into rows in their order: int32 [2, length], token ids and masks."""
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    empty = np.stack([np.full(length, token or 0, np.int32), np.zeros(length, np.int32)])
    row, place = empty.copy(), 0
    for document in documents:
        end = place + len(document.token_ids)
        if end > length:
            yield row
            row, place, end = empty.copy(), 0, len(document.token_ids)
        row[0, place:end], row[1, place:end] = document.token_ids, document.loss_weights > 0
        place = end
    yield row


def _write_hdf5(path: Path, rows: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """Lays the file out with the library and writes the rows into it as into any file.

    The library ends the process where it cannot write, as on a full disk; a plain write fails with an error.
    """
    path.write_bytes(bytes(2**16))  # more than the library writes: fails here, if anywhere
    offsets = _laid_out(path, shape)
    row_bytes = [shape[1] * _HDF5_TYPES[name].itemsize for name in offsets]
    with path.open("r+b") as file:
        for number, row in enumerate(rows):
            for values, (name, offset), size in zip(row, offsets.items(), row_bytes, strict=True):
                file.seek(offset + number * size)
                file.write(values.astype(_HDF5_TYPES[name]).tobytes())


def _laid_out(path: Path, shape: tuple[int, int]) -> dict[str, int]:
    """Makes a file with both datasets, not filled yet; where in it each begins."""
    h5py = import_h5py(path)
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    with h5py.File(path, "w") as file:
        return {
            name: h5py.h5d.create(
                file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, dcpl=options
            ).get_offset()
            for name, dtype in _HDF5_TYPES.items()
        }


def _require_same(path: Path, source: DocumentSource, template: Template, *, single_turn: bool) -> None:
    """Reads back what was written and compares it document by document."""
    openings = openings_of(template, str(path))
    found = read_token_file(path, tokenizer=template.tokenizer, template=template, single_turn=single_turn)
    remedy = "write --to jsonl, which stores boundaries"
    for number, (document, entry) in enumerate(itertools.zip_longest(_documents(source, openings), found), 1):
        if document is None or entry is None or not _is_same(document, entry):
            origin = "nothing" if document is None else document.origin
            fact = f"document {number} would be read back as another one ({origin} was written)"
            raise DataError(problem(path, fact, remedy))


def _is_same(document: Document, entry: GivenTokens | BadLine) -> bool:
    return (
        isinstance(entry, GivenTokens)
        and np.array_equal(document.token_ids, entry.token_ids)
        and np.array_equal(document.loss_weights > 0, entry.loss_weights > 0)
    )


def _lengths(source: DocumentSource, layout: Layout, template: Template) -> np.ndarray:
    """int64 [S], tokens per document as written."""
    if layout == "jsonl":
        return source.lengths
    openings = openings_of(template, "")
    return np.array([len(document.token_ids) for document in _documents(source, openings)])


def _meta(lengths: Mapping[str, np.ndarray], template: Template) -> dict[str, Any]:
    """The counts of meta.json; val is there with zeros where nothing is kept for evaluation."""
    counts = {
        name: {
            "num_examples": len(of_split),
            "total_tokens": int(of_split.sum()),
            "avg_length": float(of_split.mean()) if len(of_split) else 0.0,
        }
        for name, of_split in (
            ("train", lengths["train"]),
            ("val", lengths.get("dev", np.zeros(0, np.int64))),
        )
    }
    total = sum(map(len, lengths.values()))
    return {
        "dataset_type": "finetooth",
        "format": template.name,
        **counts,
        "total_examples": total,
        "val_split": counts["val"]["num_examples"] / total,
    }
