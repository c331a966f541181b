"""Records understood: every known format becomes a conversation, text or tokens, or is refused with a reason.

messages         {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
sharegpt         {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
alpaca           {"instruction": "Add them.", "input": "2 and 2", "output": "4"}
dolly            {"instruction": "Add them.", "context": "2 and 2", "response": "4"}
oasst            {"prompt": {"text": "2+2?", "role": "prompter", "replies": [{"text": "4", …}]}}
ultrachat        {"data": ["2+2?", "4"]}
turns            {"User": ["2+2?"], "Assistant": ["4"], "Template": ["CUSTOM"]}
prompt-response  {"prompt": "2+2?", "response": "4"}, {"prompt": …, "completion": …}
question-answer  {"question": "2+2?", "answer": "4"}
gsm8k            {"question": "2+2?", "answer": "2+2 = <<2+2=4>>4\\n#### 4"}
text             {"text": "Once upon a time …"}
tokens           {"input_ids": [7, 3, 9], "labels": [-100, 3, 9]}

A record that shows the fields of two formats is of neither until one is named; only `text` gives way to any
other, because data sets keep a rendered copy there.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from finetooth.base.errors import ConfigError, DataError, problem
from finetooth.config.sources import Format as FormatSetting
from finetooth.data.formats import instructions, lists, messages, plain, sharegpt, tokens, trees
from finetooth.data.formats.entry import Entry, UnfitError, is_empty, is_transcript, listed, shortened
from finetooth.data.records import Conversation, GivenTokens, Origin, PlainText, Record
from finetooth.data.sources.reading import BadLine, NotARecordError, parse_json

# fmt: off
Format = Literal[
    "messages", "sharegpt", "alpaca", "dolly", "oasst", "ultrachat", "turns",
    "prompt-response", "question-answer", "gsm8k", "text", "tokens",
]
# fmt: on

FIELD_NAMES: dict[Format, tuple[str, ...]] = {
    "messages": messages.NAMES,
    "sharegpt": sharegpt.NAMES,
    "alpaca": instructions.ALPACA_NAMES,
    "dolly": instructions.DOLLY_NAMES,
    "oasst": trees.NAMES,
    "ultrachat": lists.ULTRACHAT_NAMES,
    "turns": lists.TURNS_NAMES,
    "prompt-response": instructions.PROMPT_RESPONSE_NAMES,
    "question-answer": instructions.QUESTION_ANSWER_NAMES,
    "gsm8k": instructions.QUESTION_ANSWER_NAMES,
    "text": plain.NAMES,
    "tokens": tokens.NAMES,
}
"""The fields that each format reads; `data.fields` can say what the records call them."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is not of its format, and why."""

    origin: Origin
    fact: str
    remedy: str


def to_conversation(
    record: Record, *, format: Format, fields: Mapping[str, str] | None = None, input_join: str = "\n\n"
) -> Conversation | PlainText | GivenTokens | BadRecord:
    """Reads one record; never raises for what a record holds.

    fields:     what the record calls the format's fields: {"prompt": "question", "response": "reply"}
    input_join: what stands between the instruction and the input or context of alpaca and dolly
    """
    return read_record(record, format=format, fields=fields, input_join=input_join)[0]


def read_record(
    record: Record, *, format: Format, fields: Mapping[str, str] | None = None, input_join: str = "\n\n"
) -> tuple[Conversation | PlainText | GivenTokens | BadRecord, list[str]]:
    """As to_conversation; the second value names what the record holds and its format passes over.

    Empty values do not count. {"prompt": "a", "response": "b", "id": 7} gives "id"; the time of a message
    gives "messages[].time".
    """
    family: list[Entry] = []
    try:
        root = Entry(record.fields, names=fields, family=family)
        item = _read(root, record.origin, format, input_join)
    except UnfitError as error:
        return BadRecord(record.origin, error.fact, error.remedy), []
    passed_over = sorted({name for entry in family for name in entry.passed_over()})
    family.clear()  # entries know their family: without this only the garbage collector would free them
    return item, passed_over


def unread_fields(record: Record, *, format: Format, fields: Mapping[str, str] | None = None) -> list[str]:
    """Names of what a record holds and its format passes over; none of a record that is refused."""
    return read_record(record, format=format, fields=fields)[1]


def detect_format(fields: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Format | None:
    """The one format that a record's fields show, or None.

    >>> detect_format({"prompt": "2+2?", "response": "4"})
    'prompt-response'
    """
    shown = _formats_shown(fields, names)
    return shown[0] if len(shown) == 1 else None


def settle_format(
    entries: Iterable[Record | BadLine],
    place: object,
    *,
    format: FormatSetting,
    fields: Mapping[str, str] | None,
) -> Format:
    """The one format in which a source is read: the one that was set, or that its first good record shows.

    Raises ConfigError where `fields` does not fit the format, DataError where none of the first thousand
    records shows a format, or the first that does shows two.
    """
    possible: list[Format] = _formats_with(fields) if format == "auto" else [format]
    _require_fitting(fields, possible)
    if len(possible) == 1:
        return possible[0]
    first: Record | BadLine | None = None
    for entry in itertools.islice(entries, 1000):
        if isinstance(entry, Record) and (shown := _formats_shown(entry.fields, fields)):
            if len(shown) > 1:
                fact = f"its records show {' and '.join(shown)} at once (line {entry.origin.line})"
                raise DataError(problem(place, fact, "set data.format to the one that is meant"))
            return shown[0]
        if first is None or (isinstance(first, BadLine) and isinstance(entry, Record)):
            first = entry
    assert first is not None, "a source without entries is refused before"
    raise DataError(problem(place, *_unrecognised(first, fields)))


def is_prompt_response(format: Format) -> bool:
    """Whether a record is one prompt and its response, or text, so that the template `concat` suits it."""
    return format not in ("messages", "sharegpt", "oasst", "ultrachat", "turns")


def _read(
    root: Entry, origin: Origin, format: Format, input_join: str
) -> Conversation | PlainText | GivenTokens:
    match format:
        case "messages":
            return messages.read_messages(root, origin)
        case "sharegpt":
            return sharegpt.read_sharegpt(root, origin)
        case "alpaca":
            return instructions.read_alpaca(root, origin, input_join)
        case "dolly":
            return instructions.read_dolly(root, origin, input_join)
        case "oasst":
            return trees.read_tree(root, origin)
        case "ultrachat":
            return lists.read_ultrachat(root, origin)
        case "turns":
            return lists.read_turns(root, origin)
        case "prompt-response":
            return instructions.read_prompt_response(root, origin)
        case "question-answer":
            return instructions.read_question_answer(root, origin)
        case "gsm8k":
            return instructions.read_gsm8k(root, origin)
        case "text":
            return plain.read_text(root, origin)
        case "tokens":
            return tokens.read_tokens(root, origin)


def _formats_shown(fields: Mapping[str, Any], names: Mapping[str, str] | None) -> list[Format]:
    """Every format whose fields a record has, among those that know the names given to fields.

    Empty texts and lists count only where nothing else shows a format, null never.
    """
    renamed = names or {}
    seen = {name: value for name, value in fields.items() if name not in {*renamed, *renamed.values()}}
    seen |= {name: fields[actual] for name, actual in renamed.items() if actual in fields}
    seen = {name: value for name, value in seen.items() if value is not None}
    filled = {name: value for name, value in seen.items() if not is_empty(value)}
    possible = _formats_with(names)
    shown: list[Format] = [format for format in possible if _shows(filled, format)]
    shown = shown or [format for format in possible if _shows(seen, format)]
    return [format for format in shown if format != "text" or len(shown) == 1]


def _shows(seen: Mapping[str, Any], format: Format) -> bool:
    match format:
        case "messages" | "sharegpt" | "ultrachat":
            return format in _formats_of_turns(seen)
        case "alpaca":
            return "instruction" in seen and "output" in seen
        case "dolly":
            return "instruction" in seen and "response" in seen
        case "oasst":
            return isinstance(seen.get("prompt"), dict) or ("text" in seen and "role" in seen)
        case "turns":
            return "User" in seen and "Assistant" in seen
        case "prompt-response":
            is_tree = isinstance(seen.get("prompt"), dict)
            return "prompt" in seen and not is_tree and ("response" in seen or "completion" in seen)
        case "question-answer":
            return "question" in seen and not is_empty(seen.get("answer")) and not _has_result(seen)
        case "gsm8k":
            return "question" in seen and _has_result(seen)
        case "text":
            return "text" in seen
        case "tokens":
            return "input_ids" in seen


def _formats_of_turns(seen: Mapping[str, Any]) -> set[Format]:
    """How the turns are spelled in a record that lists them: by role, by `from`, or as texts."""
    found: set[Format] = set()
    for name in ("messages", "conversations", "conversation", "data"):
        if name not in seen:
            continue
        first = _first_of(seen[name])
        if isinstance(first, str) and name in lists.ULTRACHAT_NAMES:
            found.add("ultrachat")
        elif isinstance(first, dict) and ("from" in first or "role" in first):
            found.add("sharegpt" if "from" in first else "messages")
        elif name != "data":
            found.add("messages" if name == "messages" else "sharegpt")
    return found


def _first_of(value: object) -> object:
    """The first entry of a list, or of the JSON text of one."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except NotARecordError:
            return None
    return cast(list[object], value)[0] if isinstance(value, list) and value else None


def _has_result(seen: Mapping[str, Any]) -> bool:
    answer = seen.get("answer")
    return isinstance(answer, str) and "####" in answer


def _formats_with(names: Mapping[str, str] | None) -> list[Format]:
    """Formats that know all the fields that names are given to."""
    return [format for format, known in FIELD_NAMES.items() if set(names or ()) <= set(known)]


def _require_fitting(fields: Mapping[str, str] | None, possible: Sequence[Format]) -> None:
    """Refuses names for fields that the format, or every format, lacks."""
    names = fields or {}
    problems: list[str] = []
    if not possible:
        fact = f"no format has the fields {_quoted(names)} together"
        problems.append(
            problem("data.fields", fact, "name fields of one format, such as prompt and response")
        )
    elif len(possible) == 1 and (unknown := [name for name in names if name not in FIELD_NAMES[possible[0]]]):
        fact = f"the format {possible[0]} has no field {_quoted(unknown)}"
        problems.append(problem("data.fields", fact, f"it has {_quoted(FIELD_NAMES[possible[0]])}"))
    if twice := [actual for actual, count in Counter(names.values()).items() if count > 1]:
        fact = f"{_quoted(twice)} is given to two fields"
        problems.append(problem("data.fields", fact, "give every field a name of its own"))
    if problems:
        raise ConfigError(problems)


def _unrecognised(first: Record | BadLine, fields: Mapping[str, str] | None) -> tuple[str, str]:
    """Why no record shows a format, told of the first one, and what to do."""
    fact = "its format is not recognised"
    line = f"line {first.origin.line}"
    if isinstance(first, BadLine):
        return f"{fact} ({line}: {first.fact})", _NAME_FORMAT
    transcripts = [name for name, value in first.fields.items() if is_transcript(value)]
    if transcripts:
        fact = f"{fact} ({line} has {_quoted(transcripts)}, a transcript)"
        return fact, "write its turns and tool calls as a list of messages (data.format: messages)"
    missing = [actual for actual in (fields or {}).values() if actual not in first.fields]
    lacks = f", but not {_quoted(missing)} of data.fields" if missing else ""
    return f"{fact} ({line} has {listed(first.fields)}{lacks})", _NAME_FORMAT


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(shortened, names))


_NAME_FORMAT = 'set data.format, or say what its fields are called: data.fields: {"prompt": …, "response": …}'
