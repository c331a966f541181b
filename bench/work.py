"""The work that every arm is given: a size, records in the order they are trained, and equal settings.

Nothing here loads torch: the process that starts the arms must stay small, since the peak memory that an
operating system tells of a process begins with that of the process that started it.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from finetooth.batching.order import epoch_order
from finetooth.config.schema import ModelConfig
from finetooth.model.shape import ModelShape, shape_of
from processes import run_process

SEED = 42
LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, 0.01, 1.0
LORA_RANK, LORA_ALPHA = 16, 32
Record = dict[str, list[dict[str, str]]]
_SIZES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("sizes.json").read_text())
SIZES = tuple(_SIZES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all arms of one comparison do.

    base:      folder of the base model with its tokenizer
    records:   JSON lines of `messages`, as they come
    ordered:   the same in the order in which finetooth trains them, so that others can do the same steps
    mean_length: of the documents, in tokens
    precision: finetooth's setting
    seed:      of the base model's parameters and of the order of the documents
    """

    size: str
    base: Path
    records: Path
    ordered: Path
    num_steps: int
    documents_per_step: int
    max_length: int
    mean_length: float
    precision: str
    seed: int = SEED

    @property
    def lora(self) -> bool:
        """Whether low-rank matrices are trained in place of all parameters."""
        return _SIZES[self.size].get("lora", False)

    @property
    def is_bf16_kept(self) -> bool:
        """Whether the parameters, or those beside which low-rank matrices are trained, are held in bf16."""
        return self.precision == "bf16-pure" or self.lora

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json, without what is common to all sizes."""
        return config_of(self.size)

    @property
    def shape(self) -> ModelShape:
        """The sizes of the base model, read from its folder."""
        return shape_of(ModelConfig(from_config=str(self.base / "config.json")))


def make_work(
    folder: Path,
    size: str,
    records: Sequence[Record],
    *,
    num_steps: int,
    documents_per_step: int,
    max_length: int,
    limit: float,
    seed: int = SEED,
) -> Work:
    """Writes the records and the base model into a folder. Of the records only as many as fill whole steps.

    Raises ArmError where the model cannot be made within `limit` seconds.
    """
    paths = _write_records(folder, records, documents_per_step, seed)
    script = Path(__file__).with_name("base_model.py")
    command = [sys.executable, str(script), size, str(paths[0]), str(folder / "base"), str(seed)]
    run_process(command, folder, limit=limit)
    return Work(
        size=size,
        base=folder / "base",
        records=paths[0],
        ordered=paths[1],
        num_steps=num_steps,
        documents_per_step=documents_per_step,
        max_length=max_length,
        mean_length=json.loads((folder / "base" / "lengths.json").read_text())["mean"],
        precision=_SIZES[size].get("precision", "auto"),
        seed=seed,
    )


def with_records(work: Work, folder: Path, records: Sequence[Record]) -> Work:
    """The same work on other records, which are written into a folder."""
    paths = _write_records(folder, records, work.documents_per_step, work.seed)
    return replace(work, records=paths[0], ordered=paths[1])


def config_of(size: str) -> dict[str, Any]:
    """What tells a size from others in its config.json."""
    return _SIZES[_SIZES[size].get("like", size)]["config"]


def read_records(path: Path) -> list[Record]:
    """Records of JSON lines with `messages`, or with GSM8K's question and answer."""
    with path.open(encoding="utf-8") as file:
        return [_conversation(json.loads(line)) for line in file]


def made_records(num_records: int, *, median: float, spread: float = 0.9, longest: int) -> list[Record]:
    """Conversations of made-up words, of one to three turns; about half of their tokens are answers.

    median, spread: of the log-normal distribution of lengths, in words, of which a token is about one; a
    spread of 0 makes all equally long. longest: in words.
    """
    draws = np.random.default_rng(0)
    words = np.array([a + b + c for a in _PARTS for b in _PARTS for c in ("", "n", "r", "s")])
    cumulative = np.cumsum(1 / np.arange(1, len(words) + 1))  # Zipf's law
    lengths = (
        np.clip(np.exp(draws.normal(np.log(median), spread, num_records)), 16, longest).round().astype(int)
    )
    records: list[Record] = []
    for length in lengths.tolist():
        num_turns = int(draws.integers(1, 4))
        places = draws.random(max(length, 2 * num_turns)) * cumulative[-1]
        parts = np.array_split(words[np.searchsorted(cumulative, places)], 2 * num_turns)
        roles = ("user", "assistant") * num_turns
        turns = zip(roles, map(" ".join, parts), strict=True)
        records.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return records


def digest_of(documents: Iterable[tuple[ArrayLike, ArrayLike]]) -> str:
    """One digest over documents, each its token ids and which of them are targets; their order is no matter.

    >>> one, other = ([1, 2], [False, True]), ([3, 4], [False, True])
    >>> digest_of([one, other]) == digest_of([other, one])
    True
    >>> digest_of([one, other]) == digest_of([one, ([3, 4], [True, True])])
    False
    """
    total = 0
    for token_ids, is_target in documents:
        content = np.asarray(token_ids, "<i4").tobytes() + np.asarray(is_target, bool).tobytes()
        total += int.from_bytes(hashlib.sha256(content).digest())
    return f"{total % (1 << 256):064x}"


_PARTS = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def _write_records(
    folder: Path, records: Sequence[Record], documents_per_step: int, seed: int
) -> tuple[Path, Path]:
    folder.mkdir(parents=True)
    lines = [json.dumps(record) + "\n" for record in records]
    del lines[len(lines) - len(lines) % documents_per_step :]
    order = epoch_order(len(lines), seed=seed, epoch=0)
    paths = folder / "records.jsonl", folder / "ordered.jsonl"
    paths[0].write_text("".join(lines))
    paths[1].write_text("".join(lines[number] for number in order))
    return paths


def _conversation(record: dict[str, Any]) -> Record:
    if "messages" in record:
        return {"messages": record["messages"]}
    turns = (("user", record["question"]), ("assistant", record["answer"]))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}
