"""Records understood: every known format becomes a Conversation, or the record is refused with a reason.

messages         {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
                 with `reasoning_content` and `tool_calls` in messages, and `tools` beside them
prompt-response  {"prompt": "2+2?", "response": "4"}, {"prompt": …, "completion": …}, or two fields by name
gsm8k            {"question": "2+2?", "answer": "2+2 = <<2+2=4>>4\n#### 4"}
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from finetooth.base.errors import DataError, problem
from finetooth.config.sources import Format as FormatSetting
from finetooth.data.records import Conversation, GivenTokens, Message, Origin, PlainText, Record, Role
from finetooth.data.sources import BadLine, kind_of

# fmt: off
Format = Literal[
    "messages", "sharegpt", "alpaca", "dolly", "oasst", "ultrachat", "turns",
    "prompt-response", "question-answer", "gsm8k", "text", "tokens",
]
# fmt: on

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_ANNOTATION = re.compile(r"<<[^<>]*>>")
_READ_KEYS = ("role", "content", "reasoning_content", "tool_calls", "weight")
# Keys that would change what is trained if they were passed over, and what to do about each.
_UNREAD_KEYS = {
    "function_call": "write it as an entry of tool_calls",
    "reasoning": "call it reasoning_content",
    "thinking": "call it reasoning_content",
    "weight": "remove it: messages have no loss weights of their own",
}


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is no conversation, and why."""

    origin: Origin
    fact: str
    remedy: str


def to_conversation(
    record: Record, *, format: Format, fields: Mapping[str, str] | None = None, input_join: str = "\n\n"
) -> Conversation | PlainText | GivenTokens | BadRecord:
    """Reads one record; never raises for what a record holds.

    `fields` names the fields that hold prompt and response: {"prompt": "instruction", "response": "output"}.
    """
    try:
        if format == "messages":
            return _from_messages(record)
        if format == "gsm8k":
            return _from_gsm8k(record)
        if format == "prompt-response":
            return _from_prompt_response(record, fields)
        raise _UnfitError(f"the format {format} is not read yet", "use another one")  # noqa: TRY301
    except _UnfitError as error:
        return BadRecord(record.origin, error.fact, error.remedy)


def detect_format(fields: Mapping[str, Any]) -> Format | None:
    """The format that a record's fields show, or None.

    >>> detect_format({"prompt": "2+2?", "response": "4"})
    'prompt-response'
    """
    if "messages" in fields:
        return "messages"
    answer = fields.get("answer")
    if "question" in fields and isinstance(answer, str) and "####" in answer:
        return "gsm8k"
    if "prompt" in fields and ("response" in fields or "completion" in fields):
        return "prompt-response"
    return None


def unread_fields(
    record: Record, *, format: Format, fields: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Names of what a record holds and its format passes over, empty values aside, also within messages.

    {"prompt": "a", "response": "b", "id": 7} gives "id"; a message's tool_call_id gives
    "messages[].tool_call_id". The record must be a conversation in this format.
    """
    read = {"messages": ("messages", "tools"), "gsm8k": ("question", "answer")}.get(format)
    names = read or (fields.values() if fields else ("prompt", "response", "completion"))
    yield from (name for name, value in record.fields.items() if name not in names and not _is_empty(value))
    if format == "messages":
        for entry in cast(list[dict[str, Any]], record.fields["messages"]):
            for key, value in entry.items():
                if key not in _READ_KEYS and not _is_empty(value):
                    yield f"messages[].{key}"


def settle_format(
    entries: Iterable[Record | BadLine],
    place: object,
    *,
    format: FormatSetting,
    fields: Mapping[str, str] | None,
) -> Format:
    """The one format in which a source is read: the one that was set, or that its first good record shows.

    Raises DataError where none of the first thousand records shows one.
    """
    if format != "auto":
        return format
    if fields is not None:
        return "prompt-response"
    first: Record | BadLine | None = None
    for entry in itertools.islice(entries, 1000):
        if isinstance(entry, Record) and (found := detect_format(entry.fields)):
            return found
        if first is None or (isinstance(first, BadLine) and isinstance(entry, Record)):
            first = entry
    assert first is not None, "a source without entries is refused before"
    shown = f": {first.fact}" if isinstance(first, BadLine) else f" has {_listed(first.fields)}"
    fact = f"its format is not recognised (line {first.origin.line}{shown})"
    remedy = 'set data.format, or name two fields: data.fields: {"prompt": …, "response": …}'
    raise DataError(problem(place, fact, remedy))


class _UnfitError(ValueError):
    def __init__(self, fact: str, remedy: str):
        super().__init__(fact)
        self.fact = fact
        self.remedy = remedy


def _from_prompt_response(record: Record, fields: Mapping[str, str] | None) -> Conversation:
    if fields is None and "response" in record.fields and "completion" in record.fields:
        fact = "both a field 'response' and a field 'completion'"
        raise _UnfitError(fact, "name one of them in data.fields")
    names = fields or {"response": "completion" if "completion" in record.fields else "response"}
    prompt = _text_field(record, names.get("prompt", "prompt"))
    response = _text_field(record, names.get("response", "response"))
    return _single_turn(record, prompt, response)


def _from_gsm8k(record: Record) -> Conversation:
    question, answer = _text_field(record, "question"), _text_field(record, "answer")
    solution, mark, result = answer.rpartition("####")
    if not mark:
        raise _UnfitError("the answer has no line '#### result'", "add it, or name another data.format")
    result = result.strip()
    if not result or "\n" in result:
        fact = "no result after '####'" if not result else "more than one line after '####'"
        raise _UnfitError(fact, "end the answer with one line '#### result'")
    solution = _ANNOTATION.sub("", solution).rstrip()
    last_line = f"<answer>{result}</answer>"
    return _single_turn(record, question, f"{solution}\n{last_line}" if solution else last_line)


def _single_turn(record: Record, prompt: str, response: str) -> Conversation:
    if not prompt.strip():
        raise _UnfitError("empty prompt", "write a prompt or remove the record")
    if not response.strip():
        raise _UnfitError("empty answer", "write an answer or remove the record")
    messages = (Message("user", prompt), Message("assistant", response))
    return Conversation(messages, record.origin)


def _text_field(record: Record, name: str) -> str:
    if name not in record.fields:
        fact = f"no field {name!r}; it has {_listed(record.fields)}"
        raise _UnfitError(fact, "add it, or set data.format or data.fields")
    value = record.fields[name]
    if not isinstance(value, str):
        raise _UnfitError(f"{name!r} is {kind_of(value)} instead of a text", "write it as a text")
    return value


def _from_messages(record: Record) -> Conversation:
    if "messages" not in record.fields:
        fact = f"no field 'messages'; it has {_listed(record.fields)}"
        raise _UnfitError(fact, "add it, or set data.format or data.fields")
    entries = _objects(record.fields["messages"], "messages")
    if not entries:
        raise _UnfitError("no messages", "write messages or remove the record")
    messages = tuple(_message(entry, f"messages[{index}]") for index, entry in enumerate(entries))
    if all(message.role != "assistant" for message in messages):
        raise _UnfitError("no assistant turn", "add an answer or remove the record")
    tools = tuple(_objects(record.fields.get("tools") or [], "tools"))
    return Conversation(messages, record.origin, tools=tools)


def _message(entry: dict[str, Any], place: str) -> Message:
    role = _role(entry, place)
    for key, remedy in _UNREAD_KEYS.items():
        if entry.get(key) is not None and not (key == "weight" and entry[key] == 1):
            raise _UnfitError(f"{place} has {key!r}, which is not read", remedy)
    tool_calls = tuple(_objects(entry.get("tool_calls") or [], f"{place}.tool_calls"))
    if tool_calls and role != "assistant":
        raise _UnfitError(f"{place} has tool_calls but the role {role}", "leave them to the assistant")
    reasoning = entry.get("reasoning_content")
    if not isinstance(reasoning, str | None):
        fact = f"{place}.reasoning_content is {kind_of(reasoning)} instead of a text"
        raise _UnfitError(fact, "write it as a text")
    content = "" if tool_calls and entry.get("content") is None else _content(entry, place)
    if not content.strip() and not tool_calls:
        if role == "assistant":
            raise _UnfitError(f"{place}: empty answer", "write an answer or remove the record")
        if role == "user":
            raise _UnfitError(f"{place}: empty prompt", "write a prompt or remove the record")
    return Message(role, content, reasoning, tool_calls)


def _role(entry: dict[str, Any], place: str) -> Role:
    role = entry.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        fact = f"{place}: unknown role {_shortened(role)}" if "role" in entry else f"{place} has no role"
        raise _UnfitError(fact, "use system, user, assistant or tool")
    return _ROLES[role]


def _content(entry: dict[str, Any], place: str) -> str:
    if "content" not in entry:
        raise _UnfitError(f"{place} has no content", "add it as a text")
    content = entry["content"]
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _UnfitError(f"{place}.content is {kind_of(content)} instead of a text", "write it as a text")
    parts = _objects(cast(list[Any], content), f"{place}.content")
    return "".join(_part_text(part, f"{place}.content[{index}]") for index, part in enumerate(parts))


def _part_text(part: dict[str, Any], place: str) -> str:
    if part.get("type") != "text":
        raise _UnfitError(f"{place} is of type {_shortened(part.get('type'))}", "only text is read")
    text = part.get("text")
    if not isinstance(text, str):
        raise _UnfitError(f"{place} has no 'text'", "write the text under 'text'")
    return text


def _objects(value: object, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise _UnfitError(f"{place!r} is {kind_of(value)} instead of a list", "write it as a list of objects")
    entries = cast(list[object], value)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            fact = f"{place}[{index}] is {kind_of(entry)} instead of an object"
            raise _UnfitError(fact, "write it as an object")
    return cast(list[dict[str, Any]], entries)


def _is_empty(value: object) -> bool:
    return value is None or value in ("", [], {})


def _listed(fields: Mapping[str, Any]) -> str:
    names = [_shortened(name) for name in list(fields)[:8]]
    return ", ".join([*names, "…"] if len(fields) > 8 else names) or "no fields"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
