"""Token files as other systems write them, for the tests that read them back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetooth.data.records import GivenTokens
from finetooth.data.sources.reading import BadLine
from finetooth.data.templates.template import Template
from finetooth.data.token_files.reading import read_token_file

Turn = tuple[str, str]
Encoded = tuple[list[int], list[int]]  # token ids, and 1 where the token is trained


def chatml(template: Template, *turns: Turn, end: str = "") -> Encoded:
    """Turns in ChatML, encoded part by part; `end` stands behind the last one."""
    tokenizer = template.tokenizer
    start, stop = tokenizer.control_tokens["<|im_start|>"], tokenizer.control_tokens["<|im_end|>"]
    ids: list[int] = []
    mask: list[int] = []
    for number, (role, text) in enumerate(turns):
        header = [start, *tokenizer.encode_text(role + "\n")]
        body = [*tokenizer.encode_text(text), stop]
        after = tokenizer.encode_text("\n" if number < len(turns) - 1 else end)
        ids += [*header, *body, *after]
        mask += [0] * len(header) + [int(role == "assistant")] * len(body) + [0] * len(after)
    return ids, mask


def words(template: Template, *turns: Turn) -> Encoded:
    """Turns under headers of plain words, each ending in the end token."""
    tokenizer = template.tokenizer
    assert tokenizer.eos_token_id is not None
    ids: list[int] = []
    mask: list[int] = []
    for role, text in turns:
        header = tokenizer.encode_text(f"<|{role}|>\n")
        body = [*tokenizer.encode_text(text), tokenizer.eos_token_id]
        ids += [*header, *body]
        mask += [0] * len(header) + [int(role == "assistant")] * len(body)
    return ids, mask


def joined(documents: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """All documents one behind the other: int32 ids and masks."""
    ids = np.array([token for document in documents for token in document[0]], np.int32)
    return ids, np.array([mark for document in documents for mark in document[1]], np.int32)


def write_bin(path: Path, ids: np.ndarray, mask: np.ndarray, *, num_examples: int | None = None) -> Path:
    """The pair of files of tokens and labels, and meta.json where a number of examples is given."""
    ids.astype("<i4").tofile(path)
    np.where(mask != 0, ids, -100).astype("<i4").tofile(path.with_name(f"{path.stem}_labels.bin"))
    if num_examples is not None:
        meta = {"format": "chatml", path.stem: {"num_examples": num_examples, "total_tokens": len(ids)}}
        path.with_name("meta.json").write_text(json.dumps(meta))
    return path


def read(path: Path, template: Template, *, single_turn: bool = False) -> list[GivenTokens | BadLine]:
    return list(
        read_token_file(path, tokenizer=template.tokenizer, template=template, single_turn=single_turn)
    )


def contents(entries: Sequence[GivenTokens | BadLine]) -> list[Any]:
    """What was read, comparable: ids and mask of a document, or the fact of a bad one."""
    return [
        (entry.token_ids.tolist(), (entry.loss_weights > 0).astype(int).tolist())
        if isinstance(entry, GivenTokens)
        else entry.fact
        for entry in entries
    ]


def write_hdf5(path: Path, ids: np.ndarray, mask: np.ndarray, *, row: int = 8, **options: Any) -> Path:
    """Rows cut from the stream wherever they end, as packers that do not mind documents write them."""
    import h5py

    num_rows = len(ids) // row
    with h5py.File(path, "w") as file:
        for name, values, dtype in (("tokens", ids, "<i4"), ("loss_mask", mask, "i1")):
            content = values[: num_rows * row].reshape(num_rows, row).astype(dtype)
            file.create_dataset(name, data=content, **options)
    return path


def write_shard(path: Path, pairs: Sequence[tuple[list[int], list[int]]], *, dtype: Any = None) -> Path:
    """One shard of dialogues x and y."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    sequences = torch.tensor([token for x, y in pairs for token in (*x, *y)]).to(dtype or torch.uint16)
    offsets = torch.tensor([size for x, y in pairs for size in (len(x), len(y))], dtype=torch.int32)
    torch.save({"sequences": sequences, "offsets": offsets}, path)
    return path
