"""Proves masks once more: records are read and rendered anew, and what is trained is decoded and read.

The decoding shares nothing with the code that made the masks; it knows only the record and the tokenizer.
"""

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Outcome
from finetooth.data.preparation import PreparedData
from finetooth.data.records import Conversation, Document
from finetooth.data.rendering import render_records
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.reporting.record_report import LedgerEntry, ledger_entries, source_of


@dataclass(frozen=True, slots=True)
class MaskProof:
    """What was found in some documents; every finding is the origin of a document.

    num_answers: stretches of targets in documents of conversations
    others:      documents that are not what their records give now: other ids or loss weights
    unread:      a stretch of targets does not hold the text of an answer of the record
    endless:     a stretch of targets does not end with a stop token
    """

    num_documents: int
    num_answers: int
    others: tuple[str, ...]
    unread: tuple[str, ...]
    endless: tuple[str, ...]


def prove_masks(prepared: PreparedData, config: SFTConfig, *, numbers: Sequence[int]) -> MaskProof:
    """Holds the training documents with these numbers against their records."""
    documents = [prepared.train.document(number) for number in numbers]
    outcomes = {str(outcome.entry.origin): outcome for outcome in render_again(prepared, config, documents)}
    stops = prepared.template.stop_token_ids
    num_answers = 0
    others, unread, endless = [], [], []
    for document in documents:
        origin = str(document.origin)
        outcome = outcomes.get(origin)
        if outcome is None or not any(_is_same(document, anew) for anew in outcome.documents):
            others.append(origin)
        if outcome is None or not isinstance(outcome.item, Conversation):
            continue
        stretches = list(_stretches(document))
        num_answers += len(stretches)
        if not _holds_answers(stretches, outcome.item, prepared.tokenizer):
            unread.append(origin)
        if any(stretch[-1] not in stops for stretch in stretches):
            endless.append(origin)
    return MaskProof(len(documents), num_answers, tuple(others), tuple(unread), tuple(endless))


def render_again(
    prepared: PreparedData, config: SFTConfig, documents: Iterable[Document], *, split: str = "train"
) -> Iterator[Outcome]:
    """The records of documents of a split, read from their files and rendered."""
    wanted = {document.origin for document in documents}
    found: dict[tuple[str, str], list[LedgerEntry]] = {}
    for entry in ledger_entries(prepared):
        if entry.origin in wanted and entry.line["split"] == split:
            found.setdefault((entry.line["source"], entry.origin.path), []).append(entry)
            wanted.remove(entry.origin)
        if not wanted:
            break
    for entries in found.values():
        source = source_of(prepared, entries[0])
        origins = {entry.origin for entry in entries}
        read = (record for record in source.entries(prepared.template) if record.origin in origins)
        chosen = list(itertools.islice(read, len(origins)))
        fields = source.settings.fields
        portions = render_records(
            chosen, prepared.template, format=source.format, fields=fields, data=config.data
        )
        yield from itertools.chain.from_iterable(portions)


def _is_same(one: Document, other: Document) -> bool:
    return np.array_equal(one.token_ids, other.token_ids) and np.array_equal(
        one.loss_weights, other.loss_weights
    )


def _stretches(document: Document) -> Iterator[list[int]]:
    """The ids of each unbroken stretch of targets."""
    trained = zip(document.token_ids.tolist(), (document.loss_weights > 0).tolist(), strict=True)
    for is_target, stretch in itertools.groupby(trained, key=lambda token: token[1]):
        if is_target:
            yield [token_id for token_id, _ in stretch]


def _holds_answers(
    stretches: Sequence[Sequence[int]], conversation: Conversation, tokenizer: Tokenizer
) -> bool:
    """Whether each stretch, decoded, holds the text of an answer, in the order of the conversation."""
    answers = iter(_bare(message.content) for message in conversation.messages if message.role == "assistant")
    return all(
        any(answer in text for answer in answers)
        for text in (_bare(tokenizer.decode(stretch)) for stretch in stretches)
    )


def _bare(text: str) -> str:
    """Text without white space, normalised, as tokenizers may do to it."""
    return "".join(unicodedata.normalize("NFKC", text).split())
