"""Documents on disk: written as they come, read through memory maps, known by a fingerprint.

A store is a folder (numbers are little-endian):

    token_ids.bin      int32 [total tokens], one document after the other
    loss_weights.bin   float32 [total tokens]
    documents.npy      per document: offset, line, loss_weight_total, length, prompt_length, num_targets,
                       source (index into sources)
    store.json         format version, counts, fingerprint, sources, fingerprints of tokenizer and template
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from finetooth.base.errors import DataError, problem
from finetooth.data.records import Document, Origin

FORMAT_VERSION = 1

_TOKEN_ID = np.dtype("<i4")
_LOSS_WEIGHT = np.dtype("<f4")
_BOUNDARY = np.dtype("<i8")
_DOCUMENT = np.dtype(
    [
        *(("offset", "<i8"), ("line", "<i8"), ("loss_weight_total", "<f8")),
        *(("length", "<i4"), ("prompt_length", "<i4"), ("num_targets", "<i4"), ("source", "<i4")),
    ]
)


@dataclass(frozen=True, eq=False)
class DocumentStore:
    """Documents on disk, in order; nothing is read before it is asked for.

    token_ids:     int32 [total tokens], memory-mapped
    loss_weights:  float32 [total tokens], memory-mapped
    documents:     one entry per document, memory-mapped: offset, length, prompt_length, …
    lengths:       int64 [S], tokens of each document
    num_targets:   int64 [S], targets of each document
    loss_weight_totals: float64 [S], sum of the loss weights of each document
    fingerprint:   SHA-256 over token ids, loss weights, lengths and prompt lengths, in order
    """

    folder: Path
    token_ids: np.ndarray
    loss_weights: np.ndarray
    documents: np.ndarray
    lengths: np.ndarray
    num_targets: np.ndarray
    loss_weight_totals: np.ndarray
    sources: tuple[str, ...]
    fingerprint: str
    tokenizer_fingerprint: str
    template_fingerprint: str

    @property
    def num_documents(self) -> int:
        """How many documents the store holds (S), at least one."""
        return len(self.documents)

    @property
    def num_tokens(self) -> int:
        """How many tokens all documents have together."""
        return len(self.token_ids)

    def document(self, index: int) -> Document:
        """The document at `index`, counted from 0, as views of the memory map; IndexError beyond the last."""
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents}")
        entry = self.documents[index]
        start, end = int(entry["offset"]), int(entry["offset"]) + int(entry["length"])
        return Document(
            token_ids=self.token_ids[start:end],
            loss_weights=self.loss_weights[start:end],
            prompt_length=int(entry["prompt_length"]),
            origin=Origin(self.sources[int(entry["source"])], int(entry["line"])),
        )


def open_store(folder: Path) -> DocumentStore:
    """Opens a store after checking its counts and sizes.

    Raises DataError where something is missing, damaged or of another format.
    """
    header = _read_header(folder)
    try:
        documents = _mapped_documents(folder / "documents.npy", header["num_documents"])
        store = DocumentStore(
            folder=folder,
            token_ids=_mapped(folder / "token_ids.bin", _TOKEN_ID, header["num_tokens"]),
            loss_weights=_mapped(folder / "loss_weights.bin", _LOSS_WEIGHT, header["num_tokens"]),
            documents=documents,
            lengths=_read_only(documents["length"].astype(np.int64)),
            num_targets=_read_only(documents["num_targets"].astype(np.int64)),
            loss_weight_totals=_read_only(documents["loss_weight_total"].astype(np.float64)),
            sources=tuple(header["sources"]),
            **{name: header[name] for name in _HEADER_TEXTS},
        )
    except OSError as error:
        raise _damaged(folder, f"{Path(str(error.filename)).name} is missing") from error
    ends = np.cumsum(store.lengths)
    in_order = np.array_equal(store.documents["offset"], ends - store.lengths)
    if not in_order or ends[-1] != store.num_tokens or store.num_targets.sum() != header["num_targets"]:
        raise _damaged(folder, "the counts in documents.npy do not add up")
    return store


class StoreWriter:
    """Writes documents as they come into an existing folder, in memory that does not grow with their number.

    The store is complete when the block ends; to make it appear only then, write into `new_folder(…)`.

        with StoreWriter(folder, tokenizer_fingerprint=…, template_fingerprint=…) as writer:
            writer.extend(documents)
    """

    def __init__(self, folder: Path, *, tokenizer_fingerprint: str, template_fingerprint: str):
        self.num_documents = 0
        self.num_tokens = 0
        self.num_targets = 0
        self._folder = folder
        self._fingerprints = {
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "template_fingerprint": template_fingerprint,
        }
        self._sources: dict[str, int] = {}
        self._hashes = ContentHashes()
        self._token_ids = (folder / "token_ids.bin").open("wb")
        self._loss_weights = (folder / "loss_weights.bin").open("wb")
        self._documents = (folder / "documents.npy").open("wb")
        _write_npy_header(self._documents, num_documents=0)

    def append(self, document: Document) -> None:
        """Adds a document: token_ids [T] and loss_weights [T], T at least 1."""
        self.extend([document])

    def extend(self, documents: Sequence[Document]) -> None:
        """Adds documents in order; a few hundred at a time cost far less than one by one."""
        if not documents:
            return
        lengths = np.array([len(document.token_ids) for document in documents], np.int64)
        assert lengths.all(), "a document holds at least one token"
        assert all(len(document.loss_weights) == len(document.token_ids) for document in documents)
        token_ids = np.concatenate([document.token_ids for document in documents]).astype(_TOKEN_ID)
        loss_weights = np.concatenate([document.loss_weights for document in documents]).astype(_LOSS_WEIGHT)
        starts = np.cumsum(lengths) - lengths
        assert not loss_weights[starts].any(), "nothing predicts the first token"
        entries = np.empty(len(documents), _DOCUMENT)
        entries["offset"] = self.num_tokens + starts
        entries["line"] = [document.origin.line for document in documents]
        entries["loss_weight_total"] = np.add.reduceat(loss_weights.astype(np.float64), starts)
        entries["length"] = lengths
        entries["prompt_length"] = [document.prompt_length for document in documents]
        entries["num_targets"] = np.add.reduceat((loss_weights != 0).astype(np.int64), starts)
        entries["source"] = [self._source_number(document.origin.path) for document in documents]
        assert np.all((entries["prompt_length"] >= 0) & (entries["prompt_length"] <= lengths))
        self._token_ids.write(token_ids.tobytes())
        self._loss_weights.write(loss_weights.tobytes())
        self._documents.write(entries.tobytes())
        self._hashes.add(token_ids, loss_weights, np.stack([lengths, entries["prompt_length"]], axis=1))
        self.num_documents += len(documents)
        self.num_tokens += len(token_ids)
        self.num_targets += int(entries["num_targets"].sum())

    def _source_number(self, path: str) -> int:
        return self._sources.setdefault(path, len(self._sources))

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert self.num_documents, "a store holds at least one document"
            _write_npy_header(self._documents, num_documents=self.num_documents)
            self._write_store_json()
        for file in (self._token_ids, self._loss_weights, self._documents):
            file.close()

    def _write_store_json(self) -> None:
        header = {
            "format_version": FORMAT_VERSION,
            "num_documents": self.num_documents,
            "num_tokens": self.num_tokens,
            "num_targets": self.num_targets,
            "fingerprint": self._hashes.fingerprint(),
            **self._fingerprints,
            "sources": list(self._sources),
        }
        (self._folder / "store.json").write_text(json.dumps(header, indent=1, ensure_ascii=False))


class ContentHashes:
    """The fingerprint of a store's content, over as many pieces as it is handed in."""

    def __init__(self) -> None:
        self._parts = [hashlib.sha256() for _ in range(3)]

    def add_document(self, document: Document) -> None:
        """Adds a document after those before it."""
        boundaries = np.array([len(document.token_ids), document.prompt_length])
        self.add(document.token_ids, document.loss_weights, boundaries)

    def add(self, token_ids: np.ndarray, loss_weights: np.ndarray, boundaries: np.ndarray) -> None:
        """Adds tokens [T], loss weights [T], and the length and prompt length of documents [S, 2]."""
        arrays = ((token_ids, _TOKEN_ID), (loss_weights, _LOSS_WEIGHT), (boundaries, _BOUNDARY))
        for part, (array, dtype) in zip(self._parts, arrays, strict=True):
            part.update(np.ascontiguousarray(array, dtype).data)

    def fingerprint(self) -> str:
        """SHA-256 over everything that was added."""
        return hashlib.sha256(b"".join(part.digest() for part in self._parts)).hexdigest()


_HEADER_TEXTS = ("fingerprint", "tokenizer_fingerprint", "template_fingerprint")
_HEADER_COUNTS = ("num_documents", "num_tokens", "num_targets")


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / "store.json").read_bytes())
    except OSError as error:
        raise _damaged(folder, "store.json is missing") from error
    except ValueError as error:
        raise _damaged(folder, "store.json is unreadable") from error
    if not isinstance(header, dict) or "format_version" not in header:
        raise _damaged(folder, "store.json is unreadable")
    fields = cast(dict[str, Any], header)
    if fields["format_version"] != FORMAT_VERSION:
        fact = f"written in format {fields['format_version']!r}, this version reads {FORMAT_VERSION}"
        raise _damaged(folder, fact)
    texts = all(isinstance(fields.get(name), str) for name in _HEADER_TEXTS)
    counts = all(type(fields.get(name)) is int and fields[name] >= 0 for name in _HEADER_COUNTS)
    sources = fields.get("sources")
    named = isinstance(sources, list) and all(isinstance(s, str) for s in cast(list[Any], sources))
    if not (texts and counts and named and fields["num_documents"]):
        raise _damaged(folder, "store.json is unreadable")
    return fields


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> np.ndarray:
    _require_size(path, count * dtype.itemsize)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))


def _mapped_documents(path: Path, count: int) -> np.ndarray:
    try:
        documents = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise _damaged(path.parent, "documents.npy is unreadable") from error
    if documents.dtype != _DOCUMENT or documents.shape != (count,):
        raise _damaged(path.parent, "documents.npy does not fit store.json")
    _require_size(path, documents.offset + documents.nbytes)
    return np.asarray(documents)


def _require_size(path: Path, size: int) -> None:
    found = path.stat().st_size
    if found != size:
        raise _damaged(path.parent, f"{path.name} has {found} bytes instead of {size}")


def _damaged(folder: Path, fact: str) -> DataError:
    return DataError(problem(folder, f"not a sound store: {fact}", "remove the folder and prepare again"))


def _write_npy_header(file: BinaryIO, *, num_documents: int) -> None:
    """Writes the header of documents.npy, at its place; numpy leaves room for the count to grow."""
    file.seek(0, os.SEEK_SET)
    described = {"descr": np.lib.format.dtype_to_descr(_DOCUMENT), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**described, "shape": (num_documents,)})


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
