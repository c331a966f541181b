"""Renders the entries of a source, a portion at a time, and gives each entry its fate.

While the tokenizer encodes one portion in threads of its own, Python proves the masks of the next; so a few
portions are in work at once. They come out in the order in which they went in.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from finetooth.config.schema import DataConfig
from finetooth.data.formats.reading import BadRecord, Format, read_record
from finetooth.data.ledger import Entry, Item, Outcome
from finetooth.data.masks.keep_turns import shortened
from finetooth.data.masks.masking import MaskOptions, Refusal, RenderReport, Result, render_each
from finetooth.data.records import Conversation, GivenTokens, PlainText, Record
from finetooth.data.sources.reading import BadLine
from finetooth.data.templates.template import Template

_FIRST_RECORDS = 50
_PORTION_RECORDS = 500
_PORTION_CHARACTERS = 2_000_000
_AT_ONCE = 2

Portion = list[tuple[Entry, Item | BadRecord | BadLine, Sequence[str]]]


def render_records(
    entries: Iterable[Entry],
    template: Template,
    *,
    format: Format,
    fields: Mapping[str, str] | None,
    data: DataConfig,
) -> Iterator[list[Outcome]]:
    """Gives every entry its fate, in order, some hundred at a time."""
    portions = _portions(entries, format, fields, data)
    # The first portion, a small one, goes alone: it makes the tokenizer's encoder, which two threads would
    # make twice.
    for portion in itertools.islice(portions, 1):
        yield _rendered(portion, template, data)
    in_work: deque[Future[list[Outcome]]] = deque()
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
    """Entries beside what was read in them and what was not, in portions bounded by number and by text."""
    portion: Portion = []
    num_characters, most = 0, min(_FIRST_RECORDS, _PORTION_RECORDS)
    for entry in entries:
        read: Item | BadRecord | BadLine
        unread: Sequence[str] = ()
        if isinstance(entry, Record):
            read, unread = read_record(entry, format=format, fields=fields, input_join=data.input_join)
        else:
            read = entry
        portion.append((entry, read, unread))
        num_characters += _size_of(read)
        if len(portion) == most or num_characters > _PORTION_CHARACTERS:
            yield portion
            portion, num_characters, most = [], 0, _PORTION_RECORDS
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


def _rendered(portion: Portion, template: Template, data: DataConfig) -> list[Outcome]:
    options = MaskOptions.of(data)
    items = [read for _, read, _ in portion if not isinstance(read, BadRecord | BadLine)]
    remaining = iter(render_each(items, template, options=options))
    outcomes: list[Outcome] = []
    for entry, read, unread in portion:
        if isinstance(read, BadRecord | BadLine):
            is_error = data.on_bad_record == "error"
            outcomes.append(
                Outcome(entry, "refused", reason=read.fact, remedy=read.remedy, is_error=is_error)
            )
            continue
        outcome = _decide(entry, read, *next(remaining), unread, data)
        if outcome.state == "dropped" and data.on_long_document == "keep-turns":
            outcome = _with_fewer_turns(outcome, template, options, data)
        outcomes.append(outcome)
    return outcomes


def _decide(
    entry: Entry,
    item: Item,
    result: Result,
    change: RenderReport | None,
    unread: Sequence[str],
    data: DataConfig,
) -> Outcome:
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
            unread=unread,
        )
    return Outcome(entry, "kept", result, item, unread=unread, change=change)


def _with_fewer_turns(
    outcome: Outcome, template: Template, options: MaskOptions, data: DataConfig
) -> Outcome:
    """What is left of a conversation that is too long when its first turns are left out, if that helps."""
    if not isinstance(outcome.item, Conversation):
        return outcome
    left = shortened(outcome.item, template, max_length=data.max_length, options=options)
    if left is None:
        return outcome
    num_left_out = len(outcome.item.messages) - len(left.conversation.messages)
    return Outcome(
        outcome.entry,
        "kept",
        left.documents,
        left.conversation,
        whole=outcome.item,
        num_left_out=num_left_out,
        unread=outcome.unread,
        change=left.report,
    )
