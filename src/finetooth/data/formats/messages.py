"""The format `messages`: a list of messages with roles, as the APIs of language models take them.

    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}

Beside `content`, which is a text or a list of typed parts, a message may hold reasoning_content (or
reasoning, thinking), tool_calls (or function_call), name, tool_call_id, and the weight of its targets:
loss_weight (or weight, train, training, loss). The record may hold `system` and `tools` (or functions).
"""

import json
from dataclasses import dataclass
from typing import Any, cast

from finetooth.data.formats.calls import read_calls, read_tools
from finetooth.data.formats.conversations import answer, conversation_of, question
from finetooth.data.formats.entry import Entry, UnfitError, is_empty, shortened
from finetooth.data.records import Conversation, Message, Origin, Role

NAMES = ("messages", "conversations", "conversation", "system", "tools", "functions")

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_STAGES = {"text": 1, "input_text": 1, "output_text": 1, "reasoning": 0, "thinking": 0, "tool_call": 2}
_MEDIA = {"image": "an image", "audio": "a sound", "video": "a video", "file": "a file"}
# Loss weights are float32; what is beyond these bounds could not be told from 0 or from infinity.
_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-30, 1e30


def read_messages(root: Entry, origin: Origin) -> Conversation:
    """Reads a record of this format; its tools are kept as they are, since templates may tell them apart."""
    messages = list_of_messages(root, root.one_of("messages", "conversations", "conversation"))
    name = root.one_of("tools", "functions")
    tools = read_tools(root, name, wrap=name == "functions")
    return conversation_of(root, origin, messages, tools=tools)


def list_of_messages(root: Entry, name: str, *, loss_weight: float = 1.0) -> list[Message]:
    """The messages of one field, of which there must be some.

    loss_weight: of assistant messages that say nothing of it
    """
    entries = root.entries(name)
    if not entries:
        raise UnfitError("no messages", "write messages or remove the record")
    return [read_message(entry, _role(entry), loss_weight=loss_weight) for entry in entries]


def read_message(entry: Entry, role: Role, *, content: str = "content", loss_weight: float = 1.0) -> Message:
    """One message; `content` is the name of the field that holds what is said."""
    said = _read_content(entry, content, role)
    reasoning = entry.optional_text(entry.one_of("reasoning_content", "reasoning", "thinking"))
    if said.reasoning is not None:
        if reasoning:
            fact = f"{entry.place} has its reasoning twice, in a part of its content and beside it"
            raise UnfitError(fact, "keep one of them")
        reasoning = said.reasoning
    calls = _one_place_of(said.tool_calls, _calls_beside(entry), entry.place)
    details: dict[str, Any] = {
        "name": entry.optional_text("name") or None,
        "tool_call_id": entry.optional_text("tool_call_id") or None,
        "loss_weight": loss_weight_of(entry, loss_weight if role == "assistant" else 1.0),
    }
    if role == "assistant":
        return answer(said.text, place=entry.place, reasoning=reasoning, tool_calls=calls, **details)
    if calls or reasoning:
        fact = f"{entry.place} has {'tool calls' if calls else 'reasoning'} but the role {role}"
        raise UnfitError(fact, "leave them to the assistant" if calls else "leave it to the assistant")
    if role == "user":
        return question(said.text, place=entry.place, **details)
    return Message(role, said.text, **details)


def loss_weight_of(entry: Entry, otherwise: float = 1.0) -> float:
    """What a message says of the weight of its targets, by one of the names that are in use for it.

    `loss` says it where it is true or false; a number there is somebody's measurement.
    """
    loss = ("loss",) if isinstance(entry.peek("loss"), bool) else ()
    name = entry.one_of("loss_weight", "weight", "train", "training", *loss)
    weight = entry.take(name)
    if weight is None:
        return otherwise
    if isinstance(weight, bool):
        return float(weight)
    if isinstance(weight, int | float) and (weight == 0 or _LEAST_WEIGHT <= weight <= _LARGEST_WEIGHT):
        return float(weight)
    fact = f"{entry.label(name)} is {shortened(weight)}"
    raise UnfitError(fact, "write 0 for context only, 1 for a usual answer, or another number above 0")


@dataclass(frozen=True, slots=True)
class _Content:
    text: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


def _role(entry: Entry) -> Role:
    remedy = "use system, user, assistant or tool"
    if entry.peek("role") is None:
        raise UnfitError(f"{entry.place} has no role", remedy)
    role = entry.take("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise UnfitError(f"{entry.place}: unknown role {shortened(role)}", remedy)
    return _ROLES[role]


def _read_content(entry: Entry, name: str, role: Role) -> _Content:
    value = entry.peek(name)
    if isinstance(value, str):
        return _Content(entry.text(name))
    if value is None and (entry.peek("tool_calls") or entry.peek("function_call")):
        return _Content("")
    if role == "tool" and isinstance(value, dict | list) and not _are_text_parts(cast(object, value)):
        return _Content(json.dumps(entry.take(name), ensure_ascii=False))
    if isinstance(value, list):
        return _joined(entry.entries(name), entry.label(name))
    return _Content(entry.text(name))


def _are_text_parts(value: object) -> bool:
    """Whether a tool's result is written as parts of type text, and not as a list of its own."""
    parts = cast(list[object], value) if isinstance(value, list) else []
    kinds = [cast(dict[str, object], part).get("type") for part in parts if isinstance(part, dict)]
    return bool(parts) and len(kinds) == len(parts) and all(kind in ("text", "output_text") for kind in kinds)


def _joined(parts: list[Entry], place: str) -> _Content:
    """Typed parts as one message, which templates write in this order: reasoning, text, calls."""
    texts: list[str] = []
    reasonings: list[str] = []
    calls: list[dict[str, Any]] = []
    stage = 0
    for part in parts:
        kind = _kind(part)
        if _STAGES[kind] < stage:
            raise UnfitError(f"{place}: {kind} behind {'tool calls' if calls else 'text'}", _ORDER)
        stage = _STAGES[kind]
        if stage == 0:
            reasonings.append(part.text(part.one_of("text", "value", "reasoning", "thinking")))
        elif stage == 1:
            texts.append(part.text(part.one_of("text", "value")))
        else:
            name = part.one_of("value", "tool_call", "function")
            calls.extend(read_calls(part.required(name), part.label(name)))
    return _Content("".join(texts), "".join(reasonings) if reasonings else None, tuple(calls))


def _kind(part: Entry) -> str:
    kind = part.take("type")
    if isinstance(kind, str) and kind in _STAGES:
        return kind
    for medium, name in _MEDIA.items():
        if isinstance(kind, str) and medium in kind:
            raise UnfitError(f"{part.place} is {name}", "only text can be trained; remove the record")
    fact = f"{part.place} is of type {shortened(kind)}"
    raise UnfitError(fact, "only text, reasoning and tool_call are read")


def _calls_beside(entry: Entry) -> tuple[dict[str, Any], ...]:
    name = "tool_calls"
    calls = read_calls(entry.list_of(name), entry.inner(name)) if not is_empty(entry.take(name)) else ()
    name = "function_call"
    single = () if is_empty(entry.take(name)) else read_calls(entry.take(name), entry.inner(name))
    return _one_place_of(calls, single, entry.place)


def _one_place_of(
    calls: tuple[dict[str, Any], ...], others: tuple[dict[str, Any], ...], place: str
) -> tuple[dict[str, Any], ...]:
    if calls and others:
        raise UnfitError(f"{place} has tool calls in two places", "write all of them into tool_calls")
    return calls or others


_ORDER = "divide it into several messages, each with reasoning, then text, then tool calls"
