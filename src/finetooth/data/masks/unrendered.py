"""Documents of what no template renders: plain text, and tokens that somebody else encoded and masked."""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from finetooth.data.masks.refusals import Refusal, RefusedError
from finetooth.data.records import Document, GivenTokens, PlainText
from finetooth.data.templates.provenance import Traced
from finetooth.data.templates.template import Template
from finetooth.data.tokenizer.tokenizer import Tokenizer, UnencodableError
from finetooth.data.tokenizer.twin import Twin


def text_documents(
    texts: Sequence[PlainText], template: Template, *, max_length: int | None
) -> list[tuple[tuple[Document, ...], list[str]] | Refusal]:
    """The documents of each text, and the names of control tokens that stand in it as plain text.

    The tokenizer's own BOS, the text, the end token; all tokens but the first are targets. A text above
    max_length tokens is divided into windows of nearly equal length. Each begins with the last token of the
    one before, as context, so that every token of the text is a target once.

        tokens 5 6 7 8 9, max_length 3:   5 [6 7]   7 [8 9]      ([…] = targets)
    """
    neutral = [_neutralised(text, template) for text in texts]
    by_twin: dict[Twin, list[str]] = {}
    for entry in neutral:
        if not isinstance(entry, Refusal):
            by_twin.setdefault(entry[0], []).append(entry[1])
    encoded = {twin: iter(twin.encode_batch(batch)) for twin, batch in by_twin.items()}
    results: list[tuple[tuple[Document, ...], list[str]] | Refusal] = []
    for text, entry in zip(texts, neutral, strict=True):
        if isinstance(entry, Refusal):
            results.append(entry)
            continue
        twin, neutralised = entry
        windows = _windows(text, next(encoded[twin]), template.tokenizer, max_length)
        results.append((tuple(windows), twin.names_in(neutralised)))
    return results


def given_document(
    given: GivenTokens, tokenizer: Tokenizer, stop_token_ids: Collection[int], *, train_end_token: bool
) -> tuple[Document, int]:
    """The document as given, and how many stop tokens were made targets because train_end_token asks for it.

    Raises RefusedError for ids that the tokenizer does not have, weights that cannot be, and a stop token
    that is left out behind the targets it ends.
    """
    token_ids = np.asarray(given.token_ids)
    loss_weights = np.array(given.loss_weights, np.float32)
    _check_given(token_ids, loss_weights, tokenizer)
    left_out = _stops_left_out(token_ids, loss_weights, stop_token_ids)
    if len(left_out) and not train_end_token:
        name = tokenizer.decode([int(token_ids[left_out[0]])])
        reason = f"{name} behind its targets (token {left_out[0]}) is no target: nothing would learn to stop"
        raise RefusedError(reason, "set data.train_end_token: true, or make it a target")
    loss_weights[left_out] = loss_weights[left_out - 1]
    is_target = loss_weights > 0
    prompt_length = int(np.flatnonzero(is_target & ~np.roll(is_target, 1))[-1])
    return Document(token_ids.astype(np.int32), loss_weights, prompt_length, given.origin), len(left_out)


def _neutralised(text: PlainText, template: Template) -> tuple[Twin, str] | Refusal:
    if template.tokenizer.eos_token_id is None:
        return Refusal("the tokenizer has no end token to end a text with", "name its eos_token")
    if not text.text.strip():
        return Refusal("empty text: nothing to train", "write a text, or drop the record")
    try:
        twin = template.tokenizer.twin_for([text.text])
    except UnencodableError as error:
        return Refusal(error.reason, error.remedy)
    traced = Traced(text.text, [(len(text.text), (0, "text"), 0)])
    return twin, twin.neutralise(traced, allowed=template.allowed_tokens).text


def _windows(
    text: PlainText, text_ids: np.ndarray, tokenizer: Tokenizer, max_length: int | None
) -> Iterator[Document]:
    leading = [tokenizer.control_tokens[token] for token in tokenizer.leading_tokens]
    token_ids = np.array([*leading, *text_ids, tokenizer.eos_token_id], np.int32)
    num_targets = len(token_ids) - 1
    num_windows = 1 if max_length is None else math.ceil(num_targets / (max_length - 1))
    edges = [num_targets * number // num_windows for number in range(num_windows + 1)]
    for begin, end in itertools.pairwise(edges):
        loss_weights = np.ones(end + 1 - begin, np.float32)
        loss_weights[0] = 0
        yield Document(token_ids[begin : end + 1], loss_weights, 1, text.origin)


def _check_given(token_ids: np.ndarray, loss_weights: np.ndarray, tokenizer: Tokenizer) -> None:
    if token_ids.shape != loss_weights.shape:
        reason = f"{len(token_ids)} tokens, {len(loss_weights)} loss weights"
        raise RefusedError(reason, "give one weight for each token")
    foreign = np.flatnonzero((token_ids < 0) | (token_ids > tokenizer.largest_id))
    if len(foreign):
        found = f"token {foreign[0]} is {token_ids[foreign[0]]}"
        reason = f"{found}; the tokenizer's ids end at {tokenizer.largest_id}"
        raise RefusedError(reason, "encode it with this tokenizer, or name the one it was encoded with")
    if not np.all(np.isfinite(loss_weights) & (loss_weights >= 0)):
        raise RefusedError("a loss weight is negative or no number", "write 0 or more")
    if len(loss_weights) and loss_weights[0]:
        raise RefusedError("its first token is a target, which nothing predicts", "set its weight to 0")
    if not loss_weights.any():
        raise RefusedError("no target: nothing to train", "give it labels, or drop the record")


def _stops_left_out(
    token_ids: np.ndarray, loss_weights: np.ndarray, stop_token_ids: Collection[int]
) -> np.ndarray:
    """Where a stop token that is no target stands right behind a target that is no stop token."""
    is_stop = np.isin(token_ids, list(stop_token_ids))
    is_target = loss_weights > 0
    return 1 + np.flatnonzero(is_target[:-1] & ~is_stop[:-1] & is_stop[1:] & ~is_target[1:])
