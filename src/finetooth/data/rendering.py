"""Renders the entries of a source, a portion at a time, and gives each entry its fate.

While the tokenizer encodes one portion in threads of its own, Python proves the masks of the next; so a few
portions are in work at once. They come out in the order in which they went in.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from finetooth.config.schema import DataConfig
from finetooth.data.formats.reading import BadRecord, Format, to_conversation
from finetooth.data.ledger import Entry, Item, Outcome
from finetooth.data.masking import MaskOptions, Refusal, RenderReport, Result, render_with_report
from finetooth.data.records import Conversation, GivenTokens, PlainText, Record
from finetooth.data.sources import BadLine
from finetooth.data.templates import Template

_PORTION_RECORDS = 500
_PORTION_CHARACTERS = 2_000_000
_AT_ONCE = 2

Portion = list[tuple[Entry, Item | BadRecord | BadLine]]


def render_records(
    entries: Iterable[Entry],
    template: Template,
    *,
    format: Format,
    fields: Mapping[str, str] | None,
    data: DataConfig,
) -> Iterator[tuple[list[Outcome], RenderReport]]:
    """Gives every entry its fate, in order, some hundred at a time, beside what rendering changed."""
    portions = _portions(entries, format, fields, data)
    # The first portion goes alone: it makes the tokenizer's encoder, which two threads would make twice.
    for portion in itertools.islice(portions, 1):
        yield _rendered(portion, template, data)
    in_work: deque[Future[tuple[list[Outcome], RenderReport]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="render") as pool:
        try:
            for portion in portions:
                in_work.append(pool.submit(_rendered, portion, template, data))
                if len(in_work) > _AT_ONCE:
                    yield in_work.popleft().result()
            while in_work:
                yield in_work.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _portions(
    entries: Iterable[Entry], format: Format, fields: Mapping[str, str] | None, data: DataConfig
) -> Iterator[Portion]:
    """Entries beside what was read in them, in portions bounded by number and by text."""
    portion: Portion = []
    num_characters = 0
    for entry in entries:
        read: Item | BadRecord | BadLine
        if isinstance(entry, Record):
            read = to_conversation(entry, format=format, fields=fields, input_join=data.input_join)
        else:
            read = entry
        portion.append((entry, read))
        num_characters += _size_of(read)
        if len(portion) == _PORTION_RECORDS or num_characters > _PORTION_CHARACTERS:
            yield portion
            portion, num_characters = [], 0
    if portion:
        yield portion


def _size_of(read: Item | BadRecord | BadLine) -> int:
    match read:
        case Conversation():
            return sum(len(message.content) for message in read.messages)
        case PlainText():
            return len(read.text)
        case GivenTokens():
            return 4 * len(read.token_ids)
        case _:
            return 0


def _rendered(portion: Portion, template: Template, data: DataConfig) -> tuple[list[Outcome], RenderReport]:
    items = [read for _, read in portion if not isinstance(read, BadRecord | BadLine)]
    results, report = render_with_report(items, template, options=MaskOptions.of(data))
    remaining = iter(results)
    outcomes: list[Outcome] = []
    for entry, read in portion:
        if isinstance(read, BadRecord | BadLine):
            is_error = data.on_bad_record == "error"
            outcomes.append(
                Outcome(entry, "refused", reason=read.fact, remedy=read.remedy, is_error=is_error)
            )
        else:
            outcomes.append(_decide(entry, read, next(remaining), data))
    return outcomes, report


def _decide(entry: Entry, item: Item, result: Result, data: DataConfig) -> Outcome:
    if isinstance(result, Refusal):
        is_error = data.on_bad_record == "error"
        return Outcome(
            entry, "refused", item=item, reason=result.reason, remedy=result.remedy, is_error=is_error
        )
    if max(len(document.token_ids) for document in result) > data.max_length:
        return Outcome(
            entry,
            "dropped",
            result,
            item,
            reason=f"longer than data.max_length ({data.max_length} tokens)",
            remedy="raise data.max_length or shorten the record",
            is_error=data.on_long_document == "error",
        )
    return Outcome(entry, "kept", result, item)
