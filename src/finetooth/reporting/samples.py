"""Records worth a look, chosen from what was prepared; the same ones whenever the same is prepared."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from finetooth.batching.order import epoch_order
from finetooth.config.schema import SFTConfig
from finetooth.data.formats.reading import to_conversation
from finetooth.data.preparation import PreparedData
from finetooth.data.records import Conversation, Origin, Record
from finetooth.data.sources.inputs import entries_of
from finetooth.data.store import open_store
from finetooth.reporting.record_report import (
    LedgerEntry,
    RecordReport,
    ledger_entries,
    report_record,
    source_of,
)

_CONVERSATIONS_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """A record with what it was chosen for: shortest, longest, with tools, …"""

    kinds: tuple[str, ...]
    record: RecordReport


def choose_samples(
    prepared: PreparedData, config: SFTConfig, *, num_each: int, is_rendered: bool
) -> list[Sample]:
    """The shortest and the longest, one with tools, one of several turns, `num_each` at random, `num_each`
    refused and `num_each` dropped, as far as there are any; each record once, with all it stands for.

    is_rendered: whether those that were not kept are rendered, which takes a second
    """
    wanted: dict[Origin, list[str]] = {}
    for kind, origin in _kept(prepared, config, num_each):
        wanted.setdefault(origin, []).append(kind)
    num_found = {"refused": 0, "dropped": 0}
    entries: dict[Origin, LedgerEntry] = {}
    for entry in ledger_entries(prepared):
        state = entry.line["state"]
        if num_found.get(state, num_each) < num_each:
            num_found[state] += 1
            wanted[entry.origin] = [state]
        if entry.origin in wanted:
            entries.setdefault(entry.origin, entry)
    return [
        Sample(tuple(kinds), report_record(prepared, config, entries[origin], is_rendered=is_rendered))
        for origin, kinds in wanted.items()
    ]


def _kept(prepared: PreparedData, config: SFTConfig, num_random: int) -> Iterator[tuple[str, Origin]]:
    store = open_store(prepared.folder / "train")
    yield "shortest", store.document(int(store.lengths.argmin())).origin
    yield "longest", store.document(int(store.lengths.argmax())).origin
    yield from _by_what_they_hold(prepared)
    order = epoch_order(store.num_documents, seed=config.training.seed, epoch=0)
    for number in order[:num_random].tolist():
        yield "random", store.document(number).origin


def _by_what_they_hold(prepared: PreparedData) -> Iterator[tuple[str, Origin]]:
    """The first kept records with tools, and of several turns, among the first of the file."""
    missing = {"with tools", "several turns"}
    entries = itertools.islice(ledger_entries(prepared), _CONVERSATIONS_LOOKED_AT)
    kept = [entry for entry in entries if (entry.line["state"], entry.line["mask"]) == ("kept", "proved")]
    origins = {entry.origin for entry in kept}
    for entry in {entry.origin.path: entry for entry in kept}.values():
        source = source_of(prepared, entry)
        for record in itertools.islice(entries_of(source.files), _CONVERSATIONS_LOOKED_AT):
            if not missing or not isinstance(record, Record) or record.origin not in origins:
                continue
            read = to_conversation(record, format=source.format, fields=source.settings.fields)
            if not isinstance(read, Conversation):
                continue
            for kind in sorted(missing & _kinds_of(read)):
                missing.remove(kind)
                yield kind, record.origin


def _kinds_of(conversation: Conversation) -> set[str]:
    num_answers = sum(message.role == "assistant" for message in conversation.messages)
    has_tools = conversation.tools or any(message.tool_calls for message in conversation.messages)
    held = {"with tools": bool(has_tools), "several turns": num_answers > 1}
    return {kind for kind, is_there in held.items() if is_there}
