"""A conversation with a policy: what was said, what of it the model is given, and the record it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetooth.data.formats.conversations import split_reasoning
from finetooth.data.records import Message


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions and answers in turn, and the system text that opens them.

    num_cut: how many answers were cut off, so that they do not end where the policy would have ended them
    """

    system: str | None = None
    messages: tuple[Message, ...] = ()
    num_cut: int = 0

    @property
    def opening(self) -> tuple[Message, ...]:
        """The system message, where there is a system text."""
        return (Message("system", self.system),) if self.system else ()

    @property
    def num_answers(self) -> int:
        """How many answers there are."""
        return sum(message.role == "assistant" for message in self.messages)

    def asked(self, text: str) -> "Dialogue":
        """With a question behind it."""
        return replace(self, messages=(*self.messages, Message("user", text)))

    def answered(self, text: str, *, is_cut: bool) -> "Dialogue":
        """With an answer behind it, whose leading <think>…</think> is read as reasoning, as in records."""
        parts = split_reasoning(text)
        answer = Message("assistant", text)
        if parts is not None:
            answer = Message("assistant", parts[1], parts[0], text_with_reasoning=text)
        return replace(self, messages=(*self.messages, answer), num_cut=self.num_cut + is_cut)

    def forgotten(self) -> "Dialogue":
        """Without what was said; the system text stays."""
        return Dialogue(self.system)

    def record(self) -> dict[str, Any]:
        """The conversation as a record of the format `messages`."""
        messages = (*self.opening, *self.messages)
        return {"messages": [{"role": each.role, "content": _whole_text(each)} for each in messages]}


def what_fits(
    dialogue: Dialogue, *, num_tokens: Callable[[Sequence[Message]], int], most: int
) -> tuple[Message, ...]:
    """Its messages, without as many of the oldest exchanges as keep the rest from fitting.

    num_tokens: how long the prompt of messages is; most: how long it may be
    The last question stays, however long it is.
    """
    first, last_question = 0, max(len(dialogue.messages) - 1, 0)
    given = (*dialogue.opening, *dialogue.messages)
    while first < last_question and num_tokens(given) > most:
        first += 2
        given = (*dialogue.opening, *dialogue.messages[first:])
    return given


def _whole_text(message: Message) -> str:
    return message.content if message.text_with_reasoning is None else message.text_with_reasoning
