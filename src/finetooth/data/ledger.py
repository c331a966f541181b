"""The fate of every record: rendered and kept, dropped for its length, or refused, each with its reason.

ledger.jsonl holds one line per record, in the order of the files:

    {"origin": "train.jsonl:17", "split": "train", "state": "kept", "reason": null, "documents": 1,
     "tokens": 212, "targets": 96}

    kept     its documents stand in the store
    dropped  sound, but a document of it is longer than allowed; the numbers are of what was rendered
    refused  no JSON object, no conversation, or its mask cannot be proved
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetooth.base.errors import problem
from finetooth.config.schema import DataConfig
from finetooth.data.formats.reading import BadRecord, Format, to_conversation
from finetooth.data.masking import MaskOptions, Refusal, RenderReport, render_with_report
from finetooth.data.records import Conversation, Document, Record
from finetooth.data.sources import BadLine
from finetooth.data.templates import Template

State = Literal["kept", "dropped", "refused"]
Split = Literal["train", "dev"]

_CHUNK_RECORDS = 1000
_CHUNK_CHARACTERS = 4_000_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry of a source; `reason` and `remedy` say why it was not kept."""

    entry: Record | BadLine
    state: State
    documents: tuple[Document, ...] = ()
    reason: str | None = None
    remedy: str = ""

    def stops(self, data: DataConfig) -> bool:
        """Whether the settings make it an error."""
        if self.state == "refused":
            return data.on_bad_record == "error"
        return self.state == "dropped" and data.on_long_document == "error"

    def problem(self) -> str:
        """Why it was not kept, with its place and what to do."""
        assert self.reason is not None
        return problem(self.entry.origin, self.reason, self.remedy)

    def ledger_line(self, split: Split) -> dict[str, Any]:
        """Its line in the ledger."""
        return {
            "origin": str(self.entry.origin),
            "split": split,
            "state": self.state,
            "reason": self.reason,
            "documents": len(self.documents),
            "tokens": sum(len(document.token_ids) for document in self.documents),
            "targets": sum(document.num_targets for document in self.documents),
        }


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


def render_records(
    entries: Iterable[Record | BadLine], template: Template, *, format: Format, data: DataConfig
) -> Iterator[tuple[list[Outcome], RenderReport]]:
    """Gives every entry its fate, in order, about a thousand at a time, beside what rendering changed."""
    for chunk in _chunks(entries, format, data.fields):
        conversations = [read for _, read in chunk if isinstance(read, Conversation)]
        documents, report = render_with_report(conversations, template, options=MaskOptions.of(data))
        rendered = iter(documents)
        outcomes: list[Outcome] = []
        for entry, read in chunk:
            result = next(rendered) if isinstance(read, Conversation) else read
            outcomes.append(_decide(entry, result, data.max_length))
        yield outcomes, report


def count_ledger(path: Path) -> dict[str, Counts]:
    """Reads a ledger back: the counts of each split that occurs in it."""
    counts: dict[str, Counts] = {}
    with path.open("rb") as file:
        for text in file:
            line = json.loads(text)
            split = counts.setdefault(line["split"], Counts())
            split.records += 1
            if line["state"] == "kept":
                split.kept += 1
                split.documents += line["documents"]
                split.tokens += line["tokens"]
                split.targets += line["targets"]
            else:
                split.dropped += line["state"] == "dropped"
                split.refused += line["state"] == "refused"
                split.reasons[line["reason"]] = split.reasons.get(line["reason"], 0) + 1
    return counts


def _chunks(
    entries: Iterable[Record | BadLine], format: Format, fields: Mapping[str, str] | None
) -> Iterator[list[tuple[Record | BadLine, Conversation | BadRecord | BadLine]]]:
    """Entries beside what was read in them, in portions bounded by number and by text."""
    chunk: list[tuple[Record | BadLine, Conversation | BadRecord | BadLine]] = []
    num_characters = 0
    for entry in entries:
        read = entry if isinstance(entry, BadLine) else to_conversation(entry, format=format, fields=fields)
        chunk.append((entry, read))
        if isinstance(read, Conversation):
            num_characters += sum(len(message.content) for message in read.messages)
        if len(chunk) == _CHUNK_RECORDS or num_characters > _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


def _decide(
    entry: Record | BadLine, result: tuple[Document, ...] | Refusal | BadRecord | BadLine, max_length: int
) -> Outcome:
    if isinstance(result, Refusal):
        return Outcome(entry, "refused", reason=result.reason, remedy=result.remedy)
    if isinstance(result, BadRecord | BadLine):
        return Outcome(entry, "refused", reason=result.fact, remedy=result.remedy)
    assert all(document.num_targets for document in result), "a document without targets trains nothing"
    if max(len(document.token_ids) for document in result) > max_length:
        reason = f"longer than data.max_length ({max_length} tokens)"
        return Outcome(entry, "dropped", result, reason, "raise data.max_length or shorten the record")
    return Outcome(entry, "kept", result)
