"""The format `sharegpt`: turns with `from` and `value`.

    {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "system": "…",
     "tools": "[…]"}

A `function_call` holds JSON, one call or a list of them. It joins the assistant's turn before it, so that
text and calls are one message: in use a model writes both before its turn ends, and as two messages the first
would teach it to end its turn before the call.
"""

import dataclasses

from finetooth.data.formats.calls import read_calls
from finetooth.data.formats.conversations import answer, conversation_of
from finetooth.data.formats.entry import Entry, UnfitError, shortened
from finetooth.data.formats.messages import loss_weight_of, read_message
from finetooth.data.records import Conversation, Message, Origin, Role

NAMES = ("conversations", "conversation", "messages", "system", "tools")

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def read_sharegpt(root: Entry, origin: Origin) -> Conversation:
    """Reads a record of this format."""
    entries = root.entries(root.one_of("conversations", "conversation", "messages"))
    if not entries:
        raise UnfitError("no messages", "write messages or remove the record")
    messages: list[Message] = []
    for entry in entries:
        speaker = entry.take("from")
        if speaker == "function_call":
            _add_call(messages, entry)
        else:
            messages.append(read_message(entry, _role(speaker, entry.place), content="value"))
    return conversation_of(root, origin, messages)


def _role(speaker: object, place: str) -> Role:
    remedy = "use system, human, gpt, function_call or observation"
    if speaker is None:
        raise UnfitError(f"{place} has no 'from'", remedy)
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise UnfitError(f"{place}: unknown speaker {shortened(speaker)}", remedy)
    return _ROLES[speaker]


def _add_call(messages: list[Message], entry: Entry) -> None:
    calls = read_calls(entry.required("value"), entry.label("value"))
    if not calls:
        raise UnfitError(f"{entry.place} calls no tool", "write a call or remove it")
    loss_weight = loss_weight_of(entry)
    before = messages[-1] if messages else None
    if before is None or before.role != "assistant":
        messages.append(answer("", tool_calls=calls, loss_weight=loss_weight))
    elif before.loss_weight != loss_weight:
        fact = f"{entry.place} has another loss weight than the text before it, and both are one turn"
        raise UnfitError(fact, "give both the same")
    else:
        messages[-1] = dataclasses.replace(before, tool_calls=(*before.tool_calls, *calls))
