"""Where the reasoning of a turn stands, and what a template is given that has no place for it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from finetooth.data.masks.refusals import RefusedError
from finetooth.data.records import Message
from finetooth.data.templates.engine import RENDERING_ERRORS
from finetooth.data.templates.provenance import UNPLACED, Source
from finetooth.data.templates.template import Template
from finetooth.data.tokenizer.twin import MessageRun, Rendered

_REASONING = "reasoning_content"


def fitted(messages: tuple[Message, ...], template: Template) -> tuple[Message, ...]:
    """The messages as a template can write them.

    Reasoning that was split off a text goes back into it where the template writes no reasoning_content.
    """
    split_off = [message for message in messages if message.text_with_reasoning is not None]
    if not split_off or writes_reasoning(template):
        return messages
    return tuple(
        message
        if message.text_with_reasoning is None
        else dataclasses.replace(message, content=message.text_with_reasoning, reasoning_content=None)
        for message in messages
    )


@functools.lru_cache(maxsize=16)
def writes_reasoning(template: Template) -> bool:
    """Whether a template writes the reasoning_content of the last turn; tried once."""
    messages = [Message("user", "question"), Message("assistant", "answer", reasoning_content="reason")]
    try:
        listed, _ = template.variables(messages)
        rendered = template.render(listed, None, add_generation_prompt=False)
    except RENDERING_ERRORS:
        return False
    return any(source is not None and source[1] == _REASONING for _, source, _ in rendered.runs)


def reasoning_span(
    text: Rendered,
    begin: int,
    end: int,
    *,
    index: int,
    message: Message,
    without_calls: Callable[[], Rendered],
) -> tuple[int, int] | None:
    """The characters of a turn that are its reasoning and what the template writes around it.

    text, begin, end: the turn stands in text[begin:end]
    index, message:   its message, as `fitted` gives it
    without_calls:    renders the same turn with other content and without tool_calls. Where the calls follow
                      the reasoning at once, it shows what ends the reasoning and what begins the calls.

    None where the template wrote no reasoning. The span reaches from the turn's begin to its content, or to
    what the template writes before its tool_calls. Raises RefusedError where these cannot be told apart.

        <think>⏎Two pairs.⏎</think>⏎⏎Four<|im_end|>
        [                          )
    """
    own = [run for run in text.messages if begin <= run.begin < end]
    if message.text_with_reasoning == message.content:
        return begin, _behind_inline_reasoning(own, index, message.content)
    thoughts = [number for number, run in enumerate(own) if run.source == (index, _REASONING)]
    if not thoughts:
        return None
    if thoughts[-1] != len(thoughts) - 1 or len(own) == len(thoughts):
        raise _inseparable(index)
    last, following = own[thoughts[-1]], own[len(thoughts)]
    if following.source == (index, "content"):
        return begin, following.begin
    behind = last.begin + last.length
    closing = _closing(without_calls(), index)
    if not text.text.startswith(closing, behind) or behind + len(closing) > following.begin:
        raise _inseparable(index)
    return begin, behind + len(closing)


def _behind_inline_reasoning(own: Sequence[MessageRun], index: int, content: str) -> int:
    """Where in the text the reasoning within a message's content ends, with the newlines behind it."""
    head, mark, rest = content.partition("</think>")
    offset = len(head) + len(mark) + len(rest) - len(rest.lstrip("\n"))
    for run in reversed(own):
        if run.source == (index, "content") and UNPLACED != run.start <= offset <= run.end:
            return run.begin + min(offset - run.start, run.length)
    raise _inseparable(index)


def _closing(probe: Rendered, index: int) -> str:
    """What the template writes between the reasoning of a message and its content."""
    reasoning = _last_run(probe.messages, (index, _REASONING))
    content = next((run for run in probe.messages if run.source == (index, "content")), None)
    if reasoning is None or content is None or content.begin < reasoning.begin:
        raise _inseparable(index)
    return probe.text[reasoning.begin + reasoning.length : content.begin]


def _last_run(runs: Sequence[MessageRun], source: Source) -> MessageRun | None:
    return next((run for run in reversed(runs) if run.source == source), None)


def _inseparable(index: int) -> RefusedError:
    reason = f"messages[{index}] (assistant): where its reasoning ends cannot be told in this template"
    return RefusedError(reason, "set data.train_reasoning: true, or use another template")
