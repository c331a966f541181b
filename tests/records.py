"""Records read in tests: converted, refused, or asked for what they hold and nobody reads."""

from typing import Any

from finetooth.data.formats.reading import BadRecord, Format, detect_format, to_conversation, unread_fields
from finetooth.data.records import Conversation, GivenTokens, Message, Origin, PlainText, Record

ORIGIN = Origin("t.jsonl", 7)


def read(record: dict[str, Any], format: Format | None = None, **options: Any) -> Any:
    """What a record is read as; its format is the given one, or the one that it shows."""
    found = format or detect_format(record, options.get("fields"))
    assert found is not None
    item = to_conversation(Record(ORIGIN, record), format=found, **options)
    assert isinstance(item, Conversation | PlainText | GivenTokens), item
    assert item.origin == ORIGIN
    return item


def messages_of(record: dict[str, Any], format: Format | None = None, **options: Any) -> tuple[Message, ...]:
    """The messages that a record is read as."""
    return read(record, format, **options).messages


def refusal(record: dict[str, Any], format: Format | None = None, **options: Any) -> str:
    """Why a record is refused, and what to do."""
    found = format or detect_format(record, options.get("fields"))
    assert found is not None
    refused = to_conversation(Record(ORIGIN, record), format=found, **options)
    assert isinstance(refused, BadRecord), refused
    assert refused.origin == ORIGIN
    return f"{refused.fact}; {refused.remedy}"


def unread(record: dict[str, Any], format: Format | None = None, **options: Any) -> list[str]:
    """What a record holds and its format passes over."""
    found = format or detect_format(record, options.get("fields"))
    assert found is not None
    return unread_fields(Record(ORIGIN, record), format=found, **options)
