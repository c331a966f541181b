"""Turns conversations into documents whose masks are proved, or refuses them with a reason.

The targets of an assistant turn are what the template writes from the end of the generation prompt through
the end-of-turn token. `turns.py` proves their place on the characters; here it is proved on the ids: the
control tokens are those the template wrote, and the ids before the targets are the generation prompt's.

    text      <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎   Hello.<|im_end|>   ⏎
    weights   0 (the generation prompt)                              1 (the targets)    0
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetooth.data.records import Conversation, Document, GivenTokens, Origin, PlainText
from finetooth.data.templates import Template
from finetooth.data.turns import Chain, MaskOptions, Refusal, RefusedError, Turn, prove_turns
from finetooth.data.twin import Rendered, Twin
from finetooth.data.unrendered import given_document, text_documents

Item = Conversation | PlainText | GivenTokens
Result = tuple[Document, ...] | Refusal


@dataclass(frozen=True, slots=True)
class RenderReport:
    """What rendering changed, added up over records.

    num_trimmed:    characters of whitespace that the template cut off at the edges of trained messages
    num_seams:      documents whose ids differ from those of their text encoded as one string, because a token
                    would have crossed the end of the generation prompt
    num_divided:    plain texts that were divided into windows
    num_end_tokens: stop tokens of given tokens that were made targets
    """

    num_trimmed: int = 0
    num_seams: int = 0
    num_divided: int = 0
    num_end_tokens: int = 0

    def __add__(self, other: "RenderReport") -> "RenderReport":
        return RenderReport(
            self.num_trimmed + other.num_trimmed,
            self.num_seams + other.num_seams,
            self.num_divided + other.num_divided,
            self.num_end_tokens + other.num_end_tokens,
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
    conversations = [item for item in items if isinstance(item, Conversation)]
    texts = [item for item in items if isinstance(item, PlainText)]
    rendered = iter(_render_conversations(conversations, template, options))
    divided = iter(text_documents(texts, template.tokenizer, max_length=options.max_length))
    results: list[Result] = []
    report = RenderReport()
    for item in items:
        match item:
            case Conversation():
                result, change = next(rendered)
            case PlainText():
                result = next(divided)
                change = (
                    RenderReport(num_divided=1) if isinstance(result, tuple) and len(result) > 1 else None
                )
            case GivenTokens():
                result, change = _given(item, template, options)
        results.append(result)
        report = report if change is None else report + change
    return results, report


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
            stops = twin.characters_of(template.stop_token_ids) if is_all else frozenset[str]()
            yield tuple(_document(part, twin, conversation.origin, stops) for part in parts), _report(parts)
        except RefusedError as error:
            yield error.refusal, None


@dataclass(frozen=True, slots=True)
class _Part:
    """One document to be: its text and ids, its turns, and where in the ids the targets of each begin."""

    text: Rendered
    token_ids: np.ndarray
    turns: tuple[Turn, ...]
    starts: tuple[int, ...]
    is_encoded_apart: bool


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
    return prompt.text[prompt.controls[-1] :] if prompt.controls else prompt.text


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
        prompt_ids = twin.encode_batch([turn.prompt.text])[0]
        rest_ids = twin.encode_after_mark(text.text[len(turn.prompt.text) :])
        starts.append(len(prompt_ids))
        yield _Part(text, np.concatenate([prompt_ids, rest_ids]), tuple(turns), tuple(starts), True)
        turns, starts = [], []
    if turns:
        yield _Part(chain.text, token_ids, tuple(turns), tuple(starts), False)


def _prompt_end(
    prompt: Rendered, stretch_ids: np.ndarray, token_ids: np.ndarray, controls: np.ndarray
) -> int | None:
    """How many of token_ids are the prompt's, or None where the ids of its last stretch are others."""
    begin = int(controls[len(prompt.controls) - 1]) if prompt.controls else 0
    end = begin + len(stretch_ids)
    return end if np.array_equal(token_ids[begin:end], stretch_ids) else None


def _document(part: _Part, twin: Twin, origin: Origin, stops: frozenset[str]) -> Document:
    """stops: the characters whose last one ends the targets when every token is trained; else none."""
    controls = _find_controls(part.text, part.token_ids, twin)
    places = part.text.controls
    loss_weights = np.zeros(len(part.token_ids), np.float32)
    for turn, start in zip(part.turns, part.starts, strict=True):
        if start == 0:
            raise RefusedError("an empty prompt: nothing predicts the first token", "write a prompt")
        loss_weights[start : controls[bisect_left(places, turn.end) - 1] + 1] = 1
    if stops:
        last_stop = max(index for index, place in enumerate(places) if part.text.text[place] in stops)
        loss_weights[1 : controls[last_stop] + 1] = 1
    return Document(part.token_ids, loss_weights, part.starts[-1], origin)


def _find_controls(text: Rendered, token_ids: np.ndarray, twin: Twin) -> np.ndarray:
    """Where the control tokens stand in the ids; refuses if they are not those the template wrote."""
    controls = twin.find_controls(token_ids)
    if token_ids[controls].tolist() != twin.ids_of([text.text[place] for place in text.controls]):
        reason = "its ids hold other control tokens than the template wrote"
        raise RefusedError(reason, "drop the record; this tokenizer cannot tell it apart")
    return controls


def _report(parts: Sequence[_Part]) -> RenderReport:
    num_trimmed = sum(turn.num_trimmed for part in parts for turn in part.turns)
    return RenderReport(num_trimmed, sum(part.is_encoded_apart for part in parts))
