"""One record looked up in the ledger: its fate, its documents, and where there are none its text and why."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.config.schema import SFTConfig
from finetooth.config.sources import SourceConfig
from finetooth.data.formats.reading import BadRecord, is_prompt_response, to_conversation
from finetooth.data.ledger import Entry, Item, Outcome, encode_line
from finetooth.data.pieces import document_data
from finetooth.data.preparation import PreparedData, TemplateLoader
from finetooth.data.records import Conversation, Document, GivenTokens, Message, Origin, PlainText, Record
from finetooth.data.rendering import render_records
from finetooth.data.sources.inputs import Source, entries_of, examine_sources
from finetooth.data.sources.reading import BadLine
from finetooth.data.store import open_store
from finetooth.data.templates.template import Template
from finetooth.data.token_files.shards import is_shard_folder
from finetooth.data.tokenizer.tokenizer import Tokenizer

_LONGEST_RAW_TEXT = 4000
_TEXT_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A line of the ledger; `number` counts the records over all files from 1."""

    number: int
    origin: Origin
    line: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RecordReport:
    """What became of a record.

    remedy:    what to do about the reason; empty where the record is kept or nothing is to be done
    documents: those of the store; of a record that was dropped, those it would have had
    text:      of a record without documents, what stands in it, as far as it could be understood
    """

    entry: LedgerEntry
    remedy: str
    documents: tuple[Document, ...]
    text: str

    @property
    def state(self) -> str:
        """kept, dropped or refused."""
        return self.entry.line["state"]

    @property
    def reason(self) -> str:
        """Why it was not kept, with the record that it repeats; empty where it was."""
        reason, same_as = self.entry.line["reason"] or "", self.entry.line["same_as"]
        return f"{reason} ({same_as})" if same_as else reason

    def as_data(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The report as JSON holds it: the ledger's line, its documents token by token."""
        return {
            "number": self.entry.number,
            **self.entry.line,
            "remedy": self.remedy or None,
            "documents": [document_data(document, tokenizer) for document in self.documents],
            "text": self.text or None,
        }


def ledger_entries(prepared: PreparedData) -> Iterator[LedgerEntry]:
    """Every line of the ledger, in the order of the files."""
    with (prepared.folder / "ledger.jsonl").open("rb") as file:
        for number, text in enumerate(file, start=1):
            yield _entry(number, text)


def find_record(prepared: PreparedData, wanted: str) -> LedgerEntry:
    """The ledger's line of a record, named by its number in the order of the files or by its origin.

    Raises ConfigError where there is none.
    """
    num_records = sum(count.records for count in prepared.counts.values())
    with (prepared.folder / "ledger.jsonl").open("rb") as file:
        if wanted.isdecimal():
            number = int(wanted)
            if 1 <= number <= num_records:
                return _entry(number, next(itertools.islice(file, number - 1, None)))
        else:
            origin = encode_line({"origin": wanted})[1:-1]
            for number, text in enumerate(file, start=1):
                if origin in text:
                    return _entry(number, text)
    raise ConfigError(_no_such_record(wanted, next(ledger_entries(prepared)).origin, num_records))


def report_record(
    prepared: PreparedData, config: SFTConfig, entry: LedgerEntry, *, is_rendered: bool = True
) -> RecordReport:
    """The whole report on a record; one that is not kept is read again, and rendered alone.

    is_rendered: whether it is; without, the text stands in the place of documents, and there is no remedy
    Raises DataError where it is not at its place any more.
    """
    if entry.line["state"] == "kept":
        return RecordReport(entry, "", _stored_documents(prepared, entry), "")
    source = source_of(prepared, entry)
    record = _read_again(entry.origin, source, prepared)
    if not is_rendered:
        return RecordReport(entry, "", (), _text_of(record, _item_of(record, source, config)))
    outcome = _render_alone(record, prepared.template, source, config)
    remedy = outcome.remedy if outcome.reason == entry.line["reason"] else ""
    text = "" if outcome.documents else _text_of(record, outcome.item)
    return RecordReport(entry, remedy, outcome.documents, text)


def report_unprepared(config: SFTConfig, wanted: str) -> tuple[RecordReport, Tokenizer]:
    """The report on a record where `prepare` leaves nothing because no record can be used; the tokenizer.

    Raises ConfigError where there is no such record.
    """
    sources = examine_sources(config.data)
    are_pairs = all(is_prompt_response(source.format) for source in sources)
    template = TemplateLoader(config, are_pairs, datetime.now()).template
    numbered = enumerate(((s, record) for s in sources for record in s.entries(template)), start=1)
    number, first = 0, None
    for number, (source, record) in numbered:
        first = first or record.origin
        if wanted in (str(number), str(record.origin)):
            outcome = _render_alone(record, template, source, config)
            entry = LedgerEntry(number, record.origin, outcome.ledger_line(source.split, source.path))
            text = _text_of(record, outcome.item)
            return RecordReport(entry, outcome.remedy, outcome.documents, text), template.tokenizer
    assert first is not None, "a source without entries is refused before"
    raise ConfigError(_no_such_record(wanted, first, number))


def source_of(prepared: PreparedData, entry: LedgerEntry) -> Source:
    """The source of a record, of which only the file of that record is read."""
    settings = json.loads((prepared.folder / "prepared.json").read_bytes())["settings"]
    path, split = entry.line["source"], entry.line["split"]
    named = [source for source in settings["sources"] if source["path"] == path]
    found = next((source for source in named if source["split"] == split), named[0])
    file = path if is_shard_folder(Path(path)) else entry.origin.path
    return Source(
        settings=SourceConfig(path=path, fields=found["fields"]),
        place="",
        split=found["split"],
        files=(file,),
        format=found["format"],
        hashes={},
        states={},
        single_turn=found["single_turn"],
    )


def _entry(number: int, text: bytes) -> LedgerEntry:
    line: dict[str, Any] = msgspec.json.decode(text)
    path, _, place = line["origin"].rpartition(":")
    return LedgerEntry(number, Origin(path, int(place)), line)


def _no_such_record(wanted: str, first: Origin, num_records: int) -> str:
    if wanted.isdecimal():
        fact = f"no record has the number {int(wanted)}"
        return problem("--record", fact, f"give a number from 1 to {num_records}, or a place such as {first}")
    remedy = f"name it as the ledger does, for instance {first}, or by its number"
    return problem("--record", f"no record stands at {wanted}", remedy)


def _stored_documents(prepared: PreparedData, entry: LedgerEntry) -> tuple[Document, ...]:
    store = open_store(prepared.folder / entry.line["split"])
    source = store.sources.index(entry.origin.path)
    places = (store.documents["line"] == entry.origin.line) & (store.documents["source"] == source)
    return tuple(store.document(int(number)) for number in np.flatnonzero(places))


def _read_again(origin: Origin, source: Source, prepared: PreparedData) -> Entry:
    # Only files of tokens ask for the template, which takes time to load.
    entries = source.entries(prepared.template) if source.format == "tokens" else entries_of(source.files)
    for entry in entries:
        if entry.origin == origin:
            return entry
    raise DataError(problem(origin, "no record stands there any more", "run again when the file is complete"))


def _item_of(record: Entry, source: Source, config: SFTConfig) -> Item | None:
    if not isinstance(record, Record):
        return record if isinstance(record, GivenTokens) else None
    fields, input_join = source.settings.fields, config.data.input_join
    read = to_conversation(record, format=source.format, fields=fields, input_join=input_join)
    return None if isinstance(read, BadRecord) else read


def _render_alone(record: Entry, template: Template, source: Source, config: SFTConfig) -> Outcome:
    format, fields = source.format, source.settings.fields
    [[outcome]] = render_records([record], template, format=format, fields=fields, data=config.data)
    return outcome


def _text_of(record: Entry, item: Item | None) -> str:
    """What stands in a record, as far as it could be understood."""
    match item, record:
        case Conversation(messages=messages), _:
            return "\n\n".join(f"{message.role}: {_text_of_message(message)}" for message in messages)
        case PlainText(text=text), _:
            return text
        case _, GivenTokens(token_ids=token_ids):
            return f"tokens {token_ids.tolist()}"
        case _, Record(fields=fields):
            return json.dumps(fields, ensure_ascii=False, indent=1)
        case _, BadLine(origin=origin):
            return _raw_text(origin)
        case _:
            return ""


def _text_of_message(message: Message) -> str:
    """All that a message holds, what is not its text as JSON."""
    held = {
        "reasoning_content": message.reasoning_content,
        "tool_calls": message.tool_calls,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    rest = {name: value for name, value in held.items() if value}
    return message.content + (f"\n{json.dumps(rest, ensure_ascii=False)}" if rest else "")


def _raw_text(origin: Origin) -> str:
    """What stands on a line of a text file; nothing for files of other kinds, and for one long JSON list."""
    if Path(origin.path).suffix.lower() not in _TEXT_ENDINGS:
        return ""
    with Path(origin.path).open("rb") as file:
        if Path(origin.path).suffix.lower() == ".json" and file.read(1) == b"[":
            return ""
        file.seek(0)
        line = next(itertools.islice(file, origin.line - 1, None), b"")
    text = line.decode(errors="replace").rstrip("\n")
    return text if len(text) <= _LONGEST_RAW_TEXT else text[:_LONGEST_RAW_TEXT] + " …"
