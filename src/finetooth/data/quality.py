"""Finds records that stand twice, and training records that also stand in dev, in memory that stays small.

A record is known by two hashes: of its documents (token ids, loss weights, boundaries), and of its prompt,
all that stands before its last answer. Equal documents within a split are duplicates. Equal documents, or an
equal prompt, on both sides of the split are a leak: what dev measures would have been trained.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from finetooth.config.schema import DataConfig
from finetooth.data.ledger import SPLITS, Outcome, Split
from finetooth.data.records import Conversation, Document, GivenTokens, Origin, PlainText

HASH_BYTES = 16
_HASH = np.dtype([("first", "<u8"), ("second", "<u8")])


def prompt_hash(item: Conversation | PlainText | GivenTokens) -> bytes:
    """Of all that stands before the last answer, whitespace at the edges of its texts aside.

    Where nothing stands before an answer (plain text, a conversation of answers alone), of the whole.
    """
    if isinstance(item, PlainText):
        return _hash(b"text", item.text.strip().encode())
    if isinstance(item, GivenTokens):
        trained = np.flatnonzero(item.loss_weights)
        gaps = np.flatnonzero(np.diff(trained) > 1)
        end = int(trained[gaps[-1] + 1 if len(gaps) else 0]) if len(trained) else 0
        return _hash(b"ids", item.token_ids[: end if end > 1 else None].astype("<i4").tobytes())
    roles = [message.role for message in item.messages]
    last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else len(roles)
    before = item.messages[: last or None]
    parts = [(m.role, m.content.strip(), m.reasoning_content, m.tool_calls, m.name) for m in before]
    return _hash(b"messages", json.dumps([parts, item.tools]).encode())


def documents_hash(documents: Sequence[Document]) -> bytes:
    """Of token ids, loss weights and boundaries."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for document in documents:
        digest.update(len(document.token_ids).to_bytes(8, "little"))
        digest.update(document.token_ids.data)
        digest.update(document.loss_weights.data)
    return digest.digest()


class DoubleFinder:
    """Knows every record that was kept so far, in 48 bytes each; call `judge` in the order of records."""

    def __init__(self, data: DataConfig):
        self._data = data
        # A prompt cannot stand on both sides where there is one side, or the split keeps it together. Other
        # text that becomes the same tokens can; it was the split that parted it, so that is no error.
        self._keeps_together = isinstance(data.dev, float) and data.group_by == "prompt"
        self._compares_prompts = data.dev is not None and data.on_leak != "keep" and not self._keeps_together
        self._documents: dict[Split, HashIndex] = {split: HashIndex() for split in SPLITS}
        self._prompts: dict[Split, HashIndex] = {split: HashIndex() for split in SPLITS}
        self._paths: dict[str, int] = {}

    def judge(self, outcomes: Sequence[Outcome], splits: Sequence[Split]) -> list[Outcome]:
        """The outcomes, with those that the settings do not let pass dropped for what they equal."""
        judged = list(outcomes)
        places = [place for place, outcome in enumerate(outcomes) if outcome.state == "kept"]
        if not places or self._keeps_all():
            return judged
        kept = [outcomes[place] for place in places]
        prompts = [prompt_hash(_item(outcome)) for outcome in kept] if self._compares_prompts else []
        seen = _Seen(
            _Lookup(self._documents, [documents_hash(outcome.documents) for outcome in kept]),
            _Lookup(self._prompts, prompts),
        )
        for position, place in enumerate(places):
            judged[place] = self._judge_one(outcomes[place], splits[place], seen, position)
        for lookup in (seen.documents, seen.prompts):
            lookup.add_new()
        return judged

    def _keeps_all(self) -> bool:
        return self._data.on_duplicate == "keep" and self._data.on_leak == "keep"

    def _judge_one(self, outcome: Outcome, split: Split, seen: "_Seen", position: int) -> Outcome:
        other: Split = "dev" if split == "train" else "train"
        if self._data.on_leak != "keep":
            same_documents = seen.documents.find(position, other)
            same = same_documents
            if same is None and self._compares_prompts:
                same = seen.prompts.find(position, other)
            if same is not None:
                what = "the same documents" if same_documents is not None else "the same prompt"
                reason = f"leak: {what} as a record of {other}"
                is_error = self._data.on_leak == "error" and not self._keeps_together
                return self._dropped(outcome, reason, same, "on_leak", is_error=is_error)
        same = seen.documents.find(position, split)
        if same is not None and self._data.on_duplicate != "keep":
            is_error = self._data.on_duplicate == "error"
            reason = "duplicate of an earlier record"
            return self._dropped(outcome, reason, same, "on_duplicate", is_error=is_error)
        number = self._number_of(outcome.entry.origin)
        seen.documents.note(position, split, number)
        if self._compares_prompts:
            seen.prompts.note(position, split, number)
        return outcome

    def _dropped(
        self, outcome: Outcome, reason: str, number: int, setting: str, *, is_error: bool
    ) -> Outcome:
        remedy = f"remove one of them, or set data.{setting} to drop or keep"
        same_as = self._origin_of(number)
        return replace(
            outcome, state="dropped", reason=reason, same_as=same_as, remedy=remedy, is_error=is_error
        )

    def _number_of(self, origin: Origin) -> int:
        return self._paths.setdefault(origin.path, len(self._paths)) << 40 | origin.line

    def _origin_of(self, number: int) -> Origin:
        return Origin(list(self._paths)[number >> 40], number & (1 << 40) - 1)


class HashIndex:
    """Numbers under hashes of 16 bytes, 24 bytes per entry: sorted runs, merged as they grow.

    >>> index = HashIndex()
    >>> index.add([b"a" * 16, b"b" * 16], [7, 8])
    >>> index.find([b"b" * 16, b"c" * 16]).tolist()
    [8, -1]
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def find(self, hashes: Sequence[bytes]) -> np.ndarray:
        """int64 [N]: the number under each hash, the first one that was added; -1 where there is none."""
        wanted = np.frombuffer(b"".join(hashes), _HASH)
        numbers = np.full(len(wanted), -1, np.int64)
        for run in reversed(self._runs):
            # Two hashes that share their first half, and only that, are too rare to be looked for.
            places = np.minimum(np.searchsorted(run.first, wanted["first"]), len(run.first) - 1)
            is_same = (run.first[places] == wanted["first"]) & (run.second[places] == wanted["second"])
            numbers = np.where(is_same, run.numbers[places], numbers)
        return numbers

    def add(self, hashes: Sequence[bytes], numbers: Sequence[int]) -> None:
        """Adds a number (0 or above) under each hash."""
        if not hashes:
            return
        halves = np.frombuffer(b"".join(hashes), _HASH)
        run = _Run(halves["first"], halves["second"], np.array(numbers, np.int64))
        while self._runs and len(self._runs[-1].first) <= 2 * len(run.first):
            run = _Run(*map(np.concatenate, zip(self._runs.pop(), run, strict=True)))
        order = np.argsort(run.first, kind="stable")
        self._runs.append(_Run(*(column[order] for column in run)))


class _Run(NamedTuple):
    """Both halves of each hash, uint64 [N], ascending by the first, and the number under it, int64 [N]."""

    first: np.ndarray
    second: np.ndarray
    numbers: np.ndarray


class _Lookup:
    """One portion of hashes looked up at once; what the portion itself adds is kept beside until it ends."""

    def __init__(self, indexes: dict[Split, HashIndex], hashes: Sequence[bytes]):
        self._indexes = indexes
        self._hashes = hashes
        self._known = {split: index.find(hashes).tolist() for split, index in indexes.items()}
        self._new: dict[Split, dict[bytes, int]] = {split: {} for split in indexes}

    def find(self, position: int, split: Split) -> int | None:
        known: int = self._known[split][position]
        return known if known >= 0 else self._new[split].get(self._hashes[position])

    def note(self, position: int, split: Split, number: int) -> None:
        if self._known[split][position] < 0:
            self._new[split].setdefault(self._hashes[position], number)

    def add_new(self) -> None:
        for split, new in self._new.items():
            self._indexes[split].add(list(new), list(new.values()))


@dataclass(frozen=True, slots=True)
class _Seen:
    documents: _Lookup
    prompts: _Lookup


def _item(outcome: Outcome) -> Conversation | PlainText | GivenTokens:
    assert outcome.read is not None, "what is kept was understood"
    return outcome.read


def _hash(kind: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES, person=kind).digest()
