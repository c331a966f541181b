"""Proves on the rendered characters where the answers of a conversation stand, or says why it cannot.

For every trained turn: the text begins with the generation prompt as the model sees it in use; between it and
the first end-of-turn token behind the message stands the message, whole, apart from whitespace at its edges;
no other message's text stands there. And no message before it is missing.
"""

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from finetooth.config.schema import DataConfig
from finetooth.data.masks.generation_blocks import check_blocks, has_blocks, left_out
from finetooth.data.masks.reasoning import fitted, reasoning_span
from finetooth.data.masks.refusals import RefusedError
from finetooth.data.records import Conversation, Message
from finetooth.data.templates.engine import RENDERING_ERRORS
from finetooth.data.templates.provenance import UNKNOWN, UNPLACED, Traced
from finetooth.data.templates.template import SYSTEM, TOOLS, Template
from finetooth.data.tokenizer.tokenizer import UnencodableError
from finetooth.data.tokenizer.twin import MessageRun, Rendered, Twin

LossOn = Literal["assistant", "last", "all"]
Span = tuple[int, int]

_SHOWN = 40  # characters of a missing text


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptions:
    """Which tokens of an item are trained.

    loss_on:         assistant (every assistant turn), last (the last one), all (every token but the first,
                     through the last end-of-turn token)
    train_reasoning: whether the reasoning of a trained turn is trained; if not, that turn's characters from
                     its begin through what the template writes around the reasoning are context (with `all`,
                     the reasoning's own characters)
    train_end_token: whether the stop token behind targets of GivenTokens is trained where it was left out
    max_length:      tokens of the longest part into which PlainText is divided; None never divides it
    """

    loss_on: LossOn = "assistant"
    train_reasoning: bool = True
    train_end_token: bool = False
    max_length: int | None = None

    @classmethod
    def of(cls, data: DataConfig) -> "MaskOptions":
        """The options that a run's settings ask for."""
        return cls(
            loss_on=data.loss_on,
            train_reasoning=data.train_reasoning,
            train_end_token=data.train_end_token,
            max_length=data.max_length,
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn whose place is proved.

    prompt:      the messages before it and the generation prompt; `text` begins with it
    text:        the conversation through this turn
    end:         where the turn ends in `text`, just behind its end-of-turn token
    num_trimmed: how many characters of whitespace the template cut off at the message's edges
    loss_weight: of the targets
    context:     the characters of the turn that are no targets, as spans of `text`
    has_other_block: whether the template's generation block holds more or less than the turn
    """

    prompt: Rendered
    text: Rendered
    end: int
    num_trimmed: int
    loss_weight: float = 1.0
    context: tuple[Span, ...] = ()
    has_other_block: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """Turns that stand in one text, each behind the one before; `text` begins with all of them.

    weights: where all tokens are targets, the spans of `text` whose loss weight is another than 1
    """

    turns: tuple[Turn, ...]
    text: Rendered
    weights: tuple[tuple[Span, float], ...] = ()


def prove_turns(
    conversation: Conversation, template: Template, *, options: MaskOptions
) -> tuple[Twin, list[Chain]]:
    """The texts of a conversation's documents with the turns in each, and the twin that encodes them.

    Raises RefusedError.
    """
    messages = fitted(conversation.messages, template)
    if messages is not conversation.messages:
        conversation = dataclasses.replace(conversation, messages=messages)
    trained = _trained(messages, options.loss_on)
    num_messages = len(messages) if options.loss_on == "all" else trained[-1] + 1
    _check_answers(messages, trained)
    traced = _render(conversation, template, trained, num_messages)
    try:
        twin = template.tokenizer.twin_for(list(traced.values()))
    except UnencodableError as error:
        raise RefusedError(error.reason, error.remedy) from error
    allowed = template.allowed_tokens
    rendered = {stage: twin.neutralise(text, allowed=allowed) for stage, text in traced.items()}
    whole = rendered[num_messages, False]
    stops = stop_characters(twin, template.stop_token_ids)
    turns = [_prove(rendered[i, True], rendered[i + 1, False], i, messages[i], stops) for i in trained]
    _check_nothing_left_out(whole, conversation, num_messages, template)
    if options.loss_on == "all":
        [chain] = _chains(turns, whole)
        return twin, [dataclasses.replace(chain, weights=_weights(whole, messages, options, stops))]
    weighed = [
        _weighed(turn, i, conversation, template, twin, options)
        for turn, i in zip(turns, trained, strict=True)
    ]
    chains = _chains(weighed, whole)
    return twin, _within_blocks(chains, messages) if has_blocks(template) else chains


def num_messages_behind(messages: Sequence[Message], loss_on: LossOn) -> int:
    """How many messages stand behind the last one that `prove_turns` shows: behind all that is trained."""
    last = messages[-1]
    if loss_on == "all" or (last.role == "assistant" and last.loss_weight):
        return 0
    return len(messages) - 1 - _trained(messages, loss_on)[-1]


@functools.lru_cache(maxsize=8)
def stop_characters(twin: Twin, stop_token_ids: tuple[int, ...]) -> frozenset[str]:
    """The private characters of the tokens that end a turn."""
    return twin.characters_of(stop_token_ids)


def _trained(messages: Sequence[Message], loss_on: LossOn) -> list[int]:
    """The numbers of the assistant turns that are proved; where all is trained, the last one."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise RefusedError("no assistant turn: nothing to train", "add an answer, or drop the record")
    counted = (
        messages if loss_on == "all" else [messages[i] for i in answers[-1 if loss_on == "last" else 0 :]]
    )
    if not any(message.loss_weight for message in counted):
        reason = "no target: the loss_weight of all that could be trained is 0"
        raise RefusedError(reason, "raise a loss_weight, or drop the record")
    if loss_on == "assistant":
        return [index for index in answers if messages[index].loss_weight]
    return answers[-1:]


def _check_answers(messages: Sequence[Message], trained: Sequence[int]) -> None:
    for index in trained:
        if not messages[index].content.strip() and not messages[index].tool_calls:
            name = _name(index, messages[index])
            raise RefusedError(f"{name}: empty answer", "write an answer, or drop the record")


def _render(
    conversation: Conversation, template: Template, trained: Sequence[int], num_messages: int
) -> dict[tuple[int, bool], Traced]:
    """Texts by (how many messages, with generation prompt?): before and after each turn, and all of it."""
    stages = [stage for index in trained for stage in ((index, True), (index + 1, False))]
    try:
        listed, tools = template.variables(conversation.messages, conversation.tools)
        num_put_before = len(listed) - len(conversation.messages)
        return {
            (count, is_prompt): template.render(
                listed[: num_put_before + count], tools, add_generation_prompt=is_prompt
            )
            for count, is_prompt in dict.fromkeys((*stages, (num_messages, False)))
        }
    except RENDERING_ERRORS as error:
        reason = f"the template refuses it: {error}"
        raise RefusedError(reason, "change the record, or use another template") from error


def _prove(prompt: Rendered, text: Rendered, index: int, message: Message, stops: frozenset[str]) -> Turn:
    name = _name(index, message)
    begin = len(prompt.text)
    if not text.text.startswith(prompt.text):
        reason = f"{name}: its rendered turn does not begin with the generation prompt"
        raise RefusedError(
            reason, "use a template (or template_args) whose generation prompt begins the turn"
        )
    own = [run for run in text.messages if run.source[0] == index]
    message_end = own[-1].begin + own[-1].length if own else begin
    behind = [place for place in text.controls if place >= max(begin, message_end)]
    end = next((place + 1 for place in behind if text.text[place] in stops), None)
    if end is None:
        reason = f"{name}: the template writes no end-of-turn token after it"
        raise RefusedError(reason, "use a template that ends every answer")
    written = [run for run in text.messages if begin <= run.begin < end]
    if any(run.source[0] != index for run in written):
        reason = f"{name}: the template writes other text of the record into the answer"
        raise RefusedError(reason, "use another template")
    num_trimmed = _count_trimmed(name, "content", message, written)
    if message.reasoning_content:
        num_trimmed += _count_trimmed(name, "reasoning_content", message, written)
    if message.tool_calls:
        _check_calls(name, message, "" if text.allowed else text.text[begin:end], written)
    return Turn(prompt, text, end, num_trimmed)


def _count_trimmed(name: str, field: str, message: Message, written: Sequence[MessageRun]) -> int:
    """How much whitespace of a field the template cut off; refuses where it changed anything else."""
    whole: str = getattr(message, field)
    runs = [run for run in written if run.source[1] == field]
    if not runs and whole.strip():
        remedy = "use one that writes it"
        if field == "reasoning_content":
            remedy += ", or put it into the content as <think>…</think>"
        raise RefusedError(f"{name}: the template leaves out its {field}", remedy)
    in_place = all(run.start != UNPLACED for run in runs)
    in_order = all(run.end == following.start for run, following in itertools.pairwise(runs))
    first, last = (runs[0].start, runs[-1].end) if runs else (0, 0)
    trimmed = whole[:first] + whole[last:]
    if not in_place or not in_order or trimmed.strip():
        remedy = "use another template"
        if field == "content" and "</think>" in whole and message.text_with_reasoning is None:
            remedy = "move the text between <think> and </think> into reasoning_content"
        raise RefusedError(f"{name}: the template changes its {field}", remedy)
    return len(trimmed)


def _check_calls(name: str, message: Message, turn: str, written: Sequence[MessageRun]) -> None:
    """Refuses where tool_calls are missing, or a name, key or text of one.

    turn: the text of the turn; empty where names of control tokens in it became the tokens, so that texts
          cannot be looked for
    """
    if not any(run.source[1] == "tool_calls" for run in written):
        raise RefusedError(f"{name}: the template leaves out its tool_calls", "use one that writes them")
    functions = [call.get("function", call) for call in message.tool_calls]
    fields = [call.get(field) for call in functions for field in ("name", "arguments")]
    texts = itertools.chain.from_iterable(map(_texts_within, fields))
    for text, count in Counter(texts).items() if turn else ():
        as_json = (json.dumps(text, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False))
        forms = {text, repr(text)[1:-1], *as_json}
        if sum(map(turn.count, forms)) < count:
            reason = f"{name}: the template leaves out {text[:_SHOWN]!r} of its tool_calls"
            raise RefusedError(reason, "use one that writes them whole")


def _texts_within(value: Any) -> Iterator[str]:
    """The keys and texts of a value; JSON text, which a template may write as it stands, counts as one."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in cast(Mapping[str, Any], value).items():
            yield key
            yield from _texts_within(entry)
    elif isinstance(value, list | tuple):
        for entry in cast(Sequence[Any], value):
            yield from _texts_within(entry)


def _weighed(
    turn: Turn, index: int, conversation: Conversation, template: Template, twin: Twin, options: MaskOptions
) -> Turn:
    """The turn with its loss weight, and with its reasoning as context where that is asked for."""
    message = conversation.messages[index]
    context: tuple[Span, ...] = ()
    if not options.train_reasoning:
        begin = len(turn.prompt.text)
        probe = functools.partial(_without_calls, index, conversation, template, twin)
        span = reasoning_span(turn.text, begin, turn.end, index=index, message=message, without_calls=probe)
        context = () if span is None else (span,)
    if message.loss_weight == 1 and not context:
        return turn
    return dataclasses.replace(turn, loss_weight=message.loss_weight, context=context)


def _without_calls(index: int, conversation: Conversation, template: Template, twin: Twin) -> Rendered:
    """The conversation through a turn, whose tool_calls are replaced by other content."""
    plain = dataclasses.replace(conversation.messages[index], content="content", tool_calls=())
    shown = dataclasses.replace(conversation, messages=(*conversation.messages[:index], plain))
    traced = _render(shown, template, [], index + 1)
    return twin.neutralise(traced[index + 1, False], allowed=template.allowed_tokens)


def _weights(
    text: Rendered, messages: Sequence[Message], options: MaskOptions, stops: frozenset[str]
) -> tuple[tuple[Span, float], ...]:
    """Where all is trained, the spans with another loss weight than 1; a later one wins over one before.

    These are the messages' own texts, an answer's through its end-of-turn token, and reasoning left out.
    """
    own = [run for run in text.messages if run.source[0] >= 0]
    ends = [place + 1 for place in text.controls if text.text[place] in stops]
    weights: list[tuple[Span, float]] = []
    for number, (begin, length, (index, _), *_) in enumerate(own):
        message, end = messages[index], begin + length
        if message.loss_weight == 1:
            continue
        is_last = number + 1 == len(own) or own[number + 1].source[0] != index
        if message.role == "assistant":
            following = len(text.text) if number + 1 == len(own) else own[number + 1].begin
            stop = next((place for place in ends if end < place <= following), end)
            end = stop if is_last else following
        weights.append(((begin, end), message.loss_weight))
    if not options.train_reasoning:
        thoughts = [run for run in own if run.source[1] == "reasoning_content"]
        weights += [((run.begin, run.begin + run.length), 0.0) for run in thoughts]
    return tuple(weights)


def _check_nothing_left_out(
    text: Rendered, conversation: Conversation, num_messages: int, template: Template
) -> None:
    """Refuses when a message's text, or the tools, are missing; earlier reasoning alone may be dropped."""
    found = {run.source for run in text.messages}
    if UNKNOWN in found:
        return
    for index, message in enumerate(conversation.messages[:num_messages]):
        for field, is_there in (("content", message.content.strip()), ("tool_calls", message.tool_calls)):
            if is_there and (index, field) not in found:
                name = _name(index, message)
                raise RefusedError(f"{name}: the template leaves out its {field}", "use one that writes it")
    if conversation.tools and TOOLS not in found:
        raise RefusedError("the template leaves out the tools", "use one that writes them")
    is_put_before = template.system is not None and all(m.role != "system" for m in conversation.messages)
    if is_put_before and (SYSTEM, "content") not in found:
        raise RefusedError("the template leaves out data.system", "remove it, or use another template")


def _chains(turns: Sequence[Turn], whole: Rendered) -> list[Chain]:
    """Groups turns that stand in one text; a template that rewrites history parts them."""
    groups: list[list[Turn]] = []
    for turn in turns:
        before = groups[-1][-1] if groups else None
        if before is not None and turn.prompt.text.startswith(before.text.text[: before.end]):
            groups[-1].append(turn)
        else:
            groups.append([turn])
    last = groups[-1][-1]
    if not whole.text.startswith(last.text.text[: last.end]):
        reason = "the template writes the last answer differently when a message follows it"
        raise RefusedError(reason, "end the conversation with the answer")
    return [Chain(tuple(group), whole if group[-1] is last else group[-1].text) for group in groups]


def _within_blocks(chains: Sequence[Chain], messages: Sequence[Message]) -> list[Chain]:
    """The chains with only those targets that the template's generation blocks hold as well."""
    honoured: list[Chain] = []
    for chain in chains:
        check_blocks(chain.text, messages)
        turns: list[Turn] = []
        for turn in chain.turns:
            found = left_out(chain.text, len(turn.prompt.text), turn.end)
            if found is not None:
                context, has_other_block = (*turn.context, *found[0]), found[1]
                turns.append(dataclasses.replace(turn, context=context, has_other_block=has_other_block))
        if turns:
            honoured.append(dataclasses.replace(chain, turns=tuple(turns)))
    if not honoured:
        reason = "no target: the template has no generation block around what could be trained"
        raise RefusedError(reason, "correct the template's {% generation %} blocks, or drop the record")
    return honoured


def _name(index: int, message: Message) -> str:
    return f"messages[{index}] ({message.role})"
