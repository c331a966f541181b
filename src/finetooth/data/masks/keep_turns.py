"""Shortens a conversation to as many whole turns from its end as fit into the longest document."""

import dataclasses
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from finetooth.data.masks.masking import MaskOptions, RenderReport, render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.records import Conversation, Document, Message
from finetooth.data.templates.template import Template


@dataclass(frozen=True, slots=True)
class Shortened:
    """What is left of a conversation, rendered and proved like any other.

    conversation: its system text and its last turns
    documents:    none of them longer than allowed
    report:       what rendering changed; num_left_out counts the messages that are gone
    """

    conversation: Conversation
    documents: tuple[Document, ...]
    report: RenderReport


def shortened(
    conversation: Conversation, template: Template, *, max_length: int, options: MaskOptions
) -> Shortened | None:
    """The longest end of a conversation whose documents all fit into max_length tokens, or None.

    System messages at its start are kept. What is left begins with a question, never with an answer or the
    result of a tool whose question is gone; no message is cut. The number of messages from the start at
    which it fits is searched by halving, since a shorter conversation never gives a longer document. One
    that is refused (its last answers are context only, say) is not too long; longer ones may fit.
    """
    messages = conversation.messages
    num_system = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    starts = _questions(messages, num_system)

    def attempt(start: int) -> Shortened | Refusal | None:
        left = dataclasses.replace(conversation, messages=messages[:num_system] + messages[start:])
        [result], report = render_with_report([left], template, options=options)
        if isinstance(result, Refusal):
            return result
        if max(len(document.token_ids) for document in result) > max_length:
            return None
        num_left_out = len(messages) - len(left.messages)
        return Shortened(left, result, report + RenderReport(num_left_out=num_left_out))

    first = bisect_left(starts, True, key=lambda start: attempt(start) is not None)
    found = attempt(starts[first]) if first < len(starts) else None
    return found if isinstance(found, Shortened) else None


def _questions(messages: Sequence[Message], num_system: int) -> list[int]:
    """Where a shortened conversation can begin: at the first user message of a turn that has an answer."""
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    last_answer = answers[-1] if answers else 0
    return [
        index
        for index in range(num_system + 1, last_answer)
        if messages[index].role == "user" and messages[index - 1].role != "user"
    ]
