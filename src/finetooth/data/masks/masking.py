"""Turns conversations into documents whose masks are proved, or refuses them with a reason.

The targets of an assistant turn are what the template writes from the end of the generation prompt through
the end-of-turn token. `turns.py` proves their place on the characters; here it is proved on the ids: the
control tokens are those the template wrote, and the ids before the targets are the generation prompt's.

    text      <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎   Hello.<|im_end|>   ⏎
    weights   0 (the generation prompt)                              1 (the targets)    0
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from finetooth.data.masks.reasoning import writes_reasoning
from finetooth.data.masks.refusals import Refusal, RefusedError
from finetooth.data.masks.turns import (
    Chain,
    MaskOptions,
    Span,
    Turn,
    num_messages_behind,
    prove_turns,
    stop_characters,
)
from finetooth.data.masks.unrendered import given_document, text_documents
from finetooth.data.records import Conversation, Document, GivenTokens, Origin, PlainText
from finetooth.data.templates.template import Template
from finetooth.data.tokenizer.twin import Rendered, Twin

Item = Conversation | PlainText | GivenTokens
Result = tuple[Document, ...] | Refusal


@dataclass(frozen=True, slots=True)
class RenderReport:
    """What rendering changed, added up over records.

    num_trimmed:      characters of whitespace that the template cut off at the edges of trained messages
    num_behind:       messages behind the last trained answer; no document holds them
    num_rewritten:    conversations in several documents, because the template rewrites history
    num_reasoning:    answers whose leading <think>…</think> the template was given as reasoning_content
    num_unwritten:    answers whose reasoning no document holds, because the template drops it from history
    num_seams:        documents whose ids differ from those of their text encoded as one string, because a
                      token would have crossed the end of the generation prompt
    num_other_blocks: trained turns around which the template's generation block holds more or less
    num_divided:      plain texts that were divided into windows
    num_end_tokens:   stop tokens of given tokens that were made targets
    num_left_out:     messages that were left out of conversations to fit into max_length
    control_text:     how often the name of which control token stands in documents as plain text
    """

    num_trimmed: int = 0
    num_behind: int = 0
    num_rewritten: int = 0
    num_reasoning: int = 0
    num_unwritten: int = 0
    num_seams: int = 0
    num_other_blocks: int = 0
    num_divided: int = 0
    num_end_tokens: int = 0
    num_left_out: int = 0
    control_text: Mapping[str, int] = field(default_factory=dict[str, int])

    def __add__(self, other: "RenderReport") -> "RenderReport":
        return RenderReport(
            self.num_trimmed + other.num_trimmed,
            self.num_behind + other.num_behind,
            self.num_rewritten + other.num_rewritten,
            self.num_reasoning + other.num_reasoning,
            self.num_unwritten + other.num_unwritten,
            self.num_seams + other.num_seams,
            self.num_other_blocks + other.num_other_blocks,
            self.num_divided + other.num_divided,
            self.num_end_tokens + other.num_end_tokens,
            self.num_left_out + other.num_left_out,
            dict(Counter(self.control_text) + Counter(other.control_text)),
        )


_DEFAULTS = MaskOptions()


def render_documents(
    items: Sequence[Item], template: Template, *, options: MaskOptions = _DEFAULTS
) -> list[Result]:
    """The documents of each item, in order, or why it has none; never raises for a record.

    A conversation gives one document; where the template rewrites history (drops earlier reasoning), or the
    ids of a later prompt would differ, one for each run of turns, with the history as it is in use.
    A text gives one, or one for each window; given tokens give one.
    All are encoded in one batch: pass about 1,000 at a time.
    """
    return render_with_report(items, template, options=options)[0]


def render_with_report(
    items: Sequence[Item], template: Template, *, options: MaskOptions = _DEFAULTS
) -> tuple[list[Result], RenderReport]:
    """As render_documents; the second value counts what rendering changed."""
    rendered = render_each(items, template, options=options)
    report = RenderReport()
    for _, change in rendered:
        report = report if change is None else report + change
    return [result for result, _ in rendered], report


def render_each(
    items: Sequence[Item], template: Template, *, options: MaskOptions = _DEFAULTS
) -> list[tuple[Result, RenderReport | None]]:
    """As render_documents; beside the documents of each item what rendering changed, None for nothing."""
    conversations = [item for item in items if isinstance(item, Conversation)]
    texts = [item for item in items if isinstance(item, PlainText)]
    rendered = iter(_render_conversations(conversations, template, options))
    divided = iter(text_documents(texts, template, max_length=options.max_length))
    results: list[tuple[Result, RenderReport | None]] = []
    for item in items:
        match item:
            case Conversation():
                results.append(next(rendered))
            case PlainText():
                results.append(_divided(next(divided)))
            case GivenTokens():
                results.append(_given(item, template, options))
    return results


def _divided(
    outcome: tuple[tuple[Document, ...], list[str]] | Refusal,
) -> tuple[Result, RenderReport | None]:
    if isinstance(outcome, Refusal):
        return outcome, None
    documents, names = outcome
    if len(documents) == 1 and not names:
        return documents, None
    return documents, RenderReport(num_divided=len(documents) > 1, control_text=dict(Counter(names)))


def _given(
    given: GivenTokens, template: Template, options: MaskOptions
) -> tuple[Result, RenderReport | None]:
    try:
        document, num_end_tokens = given_document(
            given,
            template.tokenizer,
            template.stop_token_ids,
            train_end_token=options.train_end_token,
        )
    except RefusedError as error:
        return error.refusal, None
    return (document,), RenderReport(num_end_tokens=num_end_tokens) if num_end_tokens else None


def _render_conversations(
    conversations: Sequence[Conversation], template: Template, options: MaskOptions
) -> Iterator[tuple[Result, RenderReport | None]]:
    proofs = [_proved(conversation, template, options) for conversation in conversations]
    encoded = _encode([proof for proof in proofs if not isinstance(proof, Refusal)])
    for conversation, proof in zip(conversations, proofs, strict=True):
        if isinstance(proof, Refusal):
            yield proof, None
            continue
        twin, chains = proof
        try:
            parts = [part for chain in chains for part in _parts(chain, twin, encoded[twin])]
            is_all = options.loss_on == "all"
            stops = stop_characters(twin, template.stop_token_ids) if is_all else frozenset[str]()
            documents = tuple(_document(part, twin, conversation.origin, stops) for part in parts)
            num_behind = num_messages_behind(conversation.messages, options.loss_on)
            num_reasoning, num_unwritten = _count_reasoning(conversation, parts, template)
            of_messages = (num_behind, int(len(chains) > 1), num_reasoning, num_unwritten)
            yield documents, _report(parts, twin, of_messages)
        except RefusedError as error:
            yield error.refusal, None


@dataclass(frozen=True, slots=True)
class _Part:
    """One document to be: its text and ids, its turns, and where in the ids the targets of each begin.

    controls: where in the ids the control tokens of the text stand
    weights:  as in Chain
    seam:     where in the text two encodings meet; None where it was encoded as one string
    """

    text: Rendered
    token_ids: np.ndarray
    controls: np.ndarray
    turns: tuple[Turn, ...]
    starts: tuple[int, ...]
    weights: tuple[tuple[Span, float], ...]
    seam: int | None


def _proved(
    conversation: Conversation, template: Template, options: MaskOptions
) -> tuple[Twin, list[Chain]] | Refusal:
    try:
        return prove_turns(conversation, template, options=options)
    except RefusedError as error:
        return error.refusal


def _encode(proofs: Iterable[tuple[Twin, list[Chain]]]) -> dict[Twin, dict[str, np.ndarray]]:
    """The ids of every text and of the last stretch of every generation prompt, each encoded once."""
    wanted: dict[Twin, dict[str, None]] = {}
    for twin, chains in proofs:
        texts = wanted.setdefault(twin, {})
        for chain in chains:
            texts[chain.text.text] = None
            texts.update((_last_stretch(turn.prompt), None) for turn in chain.turns)
    return {
        twin: dict(zip(texts, twin.encode_batch(list(texts)), strict=True)) for twin, texts in wanted.items()
    }


def _last_stretch(prompt: Rendered) -> str:
    """A generation prompt from its last control token on; no token of a text crosses a control token."""
    places = prompt.control_places
    return prompt.text[places[-1] :] if places else prompt.text


def _parts(chain: Chain, twin: Twin, encoded: Mapping[str, np.ndarray]) -> Iterator[_Part]:
    """Splits a chain where the ids of a generation prompt are not those that the whole text gives it.

    In use the model sees the prompt encoded by itself, so there its ids win; and since a later turn's prompt
    is encoded as one string again, the next turn goes into a document of its own.
    """
    token_ids = encoded[chain.text.text]
    controls = _find_controls(chain.text, token_ids, twin)
    turns: list[Turn] = []
    starts: list[int] = []
    for turn in chain.turns:
        stretch = _last_stretch(turn.prompt)
        start = _prompt_end(turn.prompt, encoded[stretch], token_ids, controls)
        if twin.swallows(stretch, turn.text.text[len(turn.prompt.text)]):
            start = None
        turns.append(turn)
        if start is not None:
            starts.append(start)
            continue
        text = chain.text if turn is chain.turns[-1] else turn.text
        seam = len(turn.prompt.text)
        prompt_ids = twin.encode_batch([turn.prompt.text])[0]
        apart = np.concatenate([prompt_ids, twin.encode_after_mark(text.text[seam:])])
        places = _find_controls(text, apart, twin)
        yield _Part(text, apart, places, tuple(turns), (*starts, len(prompt_ids)), chain.weights, seam)
        turns, starts = [], []
    if turns:
        yield _Part(chain.text, token_ids, controls, tuple(turns), tuple(starts), chain.weights, None)


def _prompt_end(
    prompt: Rendered, stretch_ids: np.ndarray, token_ids: np.ndarray, controls: np.ndarray
) -> int | None:
    """How many of token_ids are the prompt's, or None where the ids of its last stretch are others."""
    places = prompt.control_places
    begin = int(controls[len(places) - 1]) if places else 0
    end = begin + len(stretch_ids)
    # For so few ids, array_equal would take ten times as long.
    return end if token_ids[begin:end].tobytes() == stretch_ids.tobytes() else None


def _document(part: _Part, twin: Twin, origin: Origin, stops: frozenset[str]) -> Document:
    """stops: the characters whose last one ends the targets when every token is trained; else none."""
    controls, places = part.controls, part.text.control_places
    loss_weights = np.zeros(len(part.token_ids), np.float32)
    for turn, start in zip(part.turns, part.starts, strict=True):
        if start == 0:
            raise RefusedError("an empty prompt: nothing predicts the first token", "write a prompt")
        loss_weights[start : controls[bisect_left(places, turn.end) - 1] + 1] = turn.loss_weight
    if stops:
        last_stop = max(place for place in part.text.controls if part.text.text[place] in stops)
        loss_weights[1 : controls[bisect_left(places, last_stop)] + 1] = 1
    exceptions = [*part.weights, *((span, 0.0) for turn in part.turns for span in turn.context)]
    if exceptions:
        _weigh(loss_weights, exceptions, part, twin)
        if not loss_weights.any():
            raise RefusedError("no target: nothing to train", "raise a loss_weight, or drop the record")
    return Document(part.token_ids, loss_weights, part.starts[-1], origin)


def _weigh(
    loss_weights: np.ndarray, exceptions: Sequence[tuple[Span, float]], part: _Part, twin: Twin
) -> None:
    """Gives other loss weights to the targets of some spans.

    A token belongs to the span of its last character: one that holds the end of the reasoning and the first
    characters of the answer is trained.
    """
    last_characters = twin.last_characters(part.text.text, seam=part.seam or 0)
    assert len(last_characters) == len(loss_weights), "offsets are those of the same tokens"
    for (begin, end), weight in exceptions:
        is_within = (last_characters >= begin) & (last_characters < end)
        loss_weights[is_within & (loss_weights > 0)] = weight


def _find_controls(text: Rendered, token_ids: np.ndarray, twin: Twin) -> np.ndarray:
    """Where the control tokens stand in the ids; refuses if they are not those of the text."""
    controls = twin.find_controls(token_ids)
    if token_ids[controls].tolist() != twin.ids_of([text.text[place] for place in text.control_places]):
        reason = "its ids hold other control tokens than the template wrote"
        raise RefusedError(reason, "drop the record; this tokenizer cannot tell it apart")
    return controls


def _count_reasoning(
    conversation: Conversation, parts: Sequence[_Part], template: Template
) -> tuple[int, int]:
    """Answers whose reasoning was split off their text, and answers whose reasoning no part holds."""
    thinking = [number for number, message in enumerate(conversation.messages) if message.reasoning_content]
    num_split_off = sum(message.text_with_reasoning is not None for message in conversation.messages)
    if not (thinking or num_split_off) or not writes_reasoning(template):
        return 0, 0
    written = {run.source for part in parts for run in part.text.messages}
    return num_split_off, sum((number, "reasoning_content") not in written for number in thinking)


def _report(
    parts: Sequence[_Part], twin: Twin, of_messages: tuple[int, int, int, int]
) -> RenderReport | None:
    """of_messages: num_behind, num_rewritten, num_reasoning and num_unwritten of the conversation."""
    turns = [turn for part in parts for turn in part.turns]
    names = [name for part in parts for name in twin.names_in(part.text.text)]
    num_seams = sum(part.seam is not None for part in parts)
    is_changed = names or num_seams or any(of_messages)
    if not (is_changed or any(turn.num_trimmed or turn.has_other_block for turn in turns)):
        return None
    num_behind, num_rewritten, num_reasoning, num_unwritten = of_messages
    return RenderReport(
        num_behind=num_behind,
        num_rewritten=num_rewritten,
        num_reasoning=num_reasoning,
        num_unwritten=num_unwritten,
        num_trimmed=sum(turn.num_trimmed for turn in turns),
        num_seams=num_seams,
        num_other_blocks=sum(turn.has_other_block for turn in turns),
        control_text=dict(Counter(names)),
    )
