"""The fate of every record: kept, dropped or refused, each with its reason.

ledger.jsonl holds one line per record, in the order of the files, those of dev sources behind those of train:

    {"origin": "train.jsonl:17", "source": "train.jsonl", "split": "train", "state": "kept", "reason": null,
     "same_as": null, "mask": "proved", "left_out": 0, "documents": 1, "tokens": 212, "targets": 96}

    kept     its documents stand in the store
    dropped  sound, but too long, or equal to another record, which `same_as` names; the numbers are of what
             was rendered
    refused  no JSON object, no conversation, or its mask cannot be proved

    mask     where its targets come from: "proved" on what the template wrote, "whole text", or "as given";
             null where nothing was rendered
    left_out how many messages were left out from the start so that the rest fits (keep-turns)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from finetooth.base.errors import problem
from finetooth.data.masks.masking import RenderReport
from finetooth.data.records import Conversation, Document, GivenTokens, Origin, PlainText, Record
from finetooth.data.sources.reading import BadLine

State = Literal["kept", "dropped", "refused"]
Split = Literal["train", "dev"]
Entry = Record | BadLine | GivenTokens
Item = Conversation | PlainText | GivenTokens

SPLITS: tuple[Split, ...] = ("train", "dev")
_MASKS = {Conversation: "proved", PlainText: "whole text", GivenTokens: "as given"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry of a source.

    item:           what was understood of it, or None
    whole:          the conversation before its first messages were left out, where they were (keep-turns)
    reason, remedy: why it was not kept, and what to do
    same_as:        the record whose documents or prompt it repeats; of a record that was kept, one that it
                    almost repeats (data.on_near_duplicate: report)
    is_error:       whether the settings make it an error that it was not kept
    num_left_out:   messages that were left out of it from the start so that the rest fits
    unread:         names of what the record holds and nothing reads
    change:         what rendering changed; None for nothing
    """

    entry: Entry
    state: State
    documents: tuple[Document, ...] = ()
    item: Item | None = None
    whole: Conversation | None = None
    reason: str | None = None
    remedy: str = ""
    same_as: Origin | None = None
    is_error: bool = False
    num_left_out: int = 0
    unread: Sequence[str] = ()
    change: RenderReport | None = None

    @property
    def read(self) -> Item | None:
        """What was understood of it, all of it: by this, and not by what fits, records are compared."""
        return self.whole or self.item

    def problem(self) -> str:
        """Why it was not kept, with its place and what to do."""
        assert self.reason is not None
        fact = self.reason if self.same_as is None else f"{self.reason} ({self.same_as})"
        return problem(self.entry.origin, fact, self.remedy)

    def ledger_line(self, split: Split, source: str) -> dict[str, Any]:
        """Its line in the ledger; `source` is the path as the settings name it."""
        return {
            "origin": str(self.entry.origin),
            "source": source,
            "split": split,
            "state": self.state,
            "reason": self.reason,
            "same_as": None if self.same_as is None else str(self.same_as),
            "mask": _MASKS[type(self.item)] if self.item is not None and self.documents else None,
            "left_out": self.num_left_out,
            "documents": len(self.documents),
            "tokens": sum(len(document.token_ids) for document in self.documents),
            "targets": sum(document.num_targets for document in self.documents),
        }


def encode_line(line: Mapping[str, Any]) -> bytes:
    """A line as it is written: ASCII, so that nothing in a reason or a file's name drives a terminal."""
    encoded = msgspec.json.encode(line)
    return encoded if encoded.isascii() else json.dumps(line, separators=(",", ":")).encode()


@dataclass(slots=True)
class Counts:
    """What the ledger says of one split.

    documents, tokens, targets: of the records that were kept
    reasons:                    how often each reason stands beside a record that was not
    """

    records: int = 0
    kept: int = 0
    dropped: int = 0
    refused: int = 0
    documents: int = 0
    tokens: int = 0
    targets: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])


class _Line(msgspec.Struct):
    """What is counted of a line."""

    split: str
    state: str  # also one that nothing should write, which is counted as missing
    reason: str | None
    mask: str | None
    documents: int
    tokens: int
    targets: int


def count_ledger(path: Path) -> dict[str, Counts]:
    """Reads a ledger back: the counts of each split that occurs in it.

    Raises msgspec.MsgspecError for a line of another kind.
    """
    counts: dict[str, Counts] = {}
    for line in _lines(path):
        split = counts.setdefault(line.split, Counts())
        split.records += 1
        if line.state == "kept":
            split.kept += 1
            split.documents += line.documents
            split.tokens += line.tokens
            split.targets += line.targets
        else:
            split.dropped += line.state == "dropped"
            split.refused += line.state == "refused"
            reason = line.reason or ""
            split.reasons[reason] = split.reasons.get(reason, 0) + 1
    return counts


def count_masks(path: Path) -> dict[str, int]:
    """Of how many records that are kept, in either split, the targets come from where: {"proved": 2601}.

    Raises msgspec.MsgspecError for a line of another kind.
    """
    masks: dict[str, int] = {}
    for line in _lines(path):
        if line.state == "kept" and line.mask is not None:
            masks[line.mask] = masks.get(line.mask, 0) + 1
    return masks


def _lines(path: Path) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as file:
        yield from map(decoder.decode, file)
