"""What all formats of conversations share: questions, answers with reasoning, system text and tools."""

from collections.abc import Iterable, Sequence
from typing import Any

from finetooth.data.formats.calls import read_tools
from finetooth.data.formats.entry import Entry, UnfitError
from finetooth.data.records import Conversation, Message, Origin

_OPENING, _CLOSING = "<think>", "</think>"


def conversation_of(
    root: Entry,
    origin: Origin,
    messages: Iterable[Message],
    *,
    tools: tuple[dict[str, Any], ...] | None = None,
) -> Conversation:
    """The messages with the record's own system text and tools, if it has any.

    tools: those of the record, where they are not the field `tools` with bare ones put under `function`

    A conversation may end with a question or a tool result; what stands behind the last answer is context.
    """
    complete = list(messages)
    if system := root.optional_text("system"):
        if any(message.role == "system" for message in complete):
            fact = f"both a field {root.label('system')} and a system message"
            raise UnfitError(fact, "keep one of them")
        complete.insert(0, Message("system", system))
    if not any(message.role == "assistant" for message in complete):
        raise UnfitError("no assistant turn", "add an answer or remove the record")
    found = read_tools(root, "tools", wrap=True) if tools is None else tools
    return Conversation(tuple(complete), origin, tools=found)


def exchange(prompts: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Questions and answers in turn; a last question may be without answer."""
    messages: list[Message] = []
    for number, prompt in enumerate(prompts):
        messages.append(question(prompt))
        if number < len(answers):
            messages.append(answer(answers[number]))
    return messages


def question(text: str, *, place: str = "", **details: Any) -> Message:
    """A user's message, which must say something."""
    if not text.strip():
        raise UnfitError(f"{place}: empty prompt" if place else "empty prompt", _WRITE_PROMPT)
    return Message("user", text, **details)


def answer(
    text: str,
    *,
    place: str = "",
    reasoning: str | None = None,
    tool_calls: tuple[dict[str, Any], ...] = (),
    **details: Any,
) -> Message:
    """An assistant's message, which must say something or call a tool.

    A <think>…</think> at the start of its text becomes reasoning_content where it has none of its own.
    """
    whole = None
    if not reasoning and (parts := split_reasoning(text)):
        whole, (reasoning, text) = text, parts
    if not text.strip() and not tool_calls:
        fact = "empty answer behind the reasoning" if whole else "empty answer"
        raise UnfitError(f"{place}: {fact}" if place else fact, _WRITE_ANSWER)
    return Message("assistant", text, reasoning, tool_calls, text_with_reasoning=whole, **details)


def split_reasoning(text: str) -> tuple[str, str] | None:
    """The reasoning that a text begins with and what follows it, or None.

    Line breaks around the two are the template's business; Qwen3's own template removes the same ones.

    >>> split_reasoning("<think>\\nIt is even.\\n</think>\\n\\nYes.")
    ('It is even.', 'Yes.')
    """
    start = text.lstrip()
    if not start.startswith(_OPENING):
        return None
    reasoning, closing, rest = start.removeprefix(_OPENING).partition(_CLOSING)
    return (reasoning.strip("\n"), rest.lstrip("\n")) if closing else None


_WRITE_PROMPT = "write a prompt or remove the record"
_WRITE_ANSWER = "write an answer or remove the record"
