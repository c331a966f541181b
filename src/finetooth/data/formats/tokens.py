"""The format `tokens`: token ids that somebody else encoded and masked.

    {"input_ids": [7, 3, 9, 4, 2], "labels": [-100, -100, -100, 4, 2]}
    {"input_ids": [7, 3, 9, 4, 2], "loss_mask": [0, 0, 0, 1, 1], "attention_mask": [1, 1, 1, 1, 1]}

A label stands at the place of its token and is the token itself, or -100 where nothing is trained. A mask
(loss_mask, completion_mask, assistant_masks) is 1 at the tokens that are trained. Ids where attention_mask is
0 are padding and are cut off; nothing else is.
"""

from typing import Any

import numpy as np

from finetooth.data.formats.entry import Entry, UnfitError, is_empty, shortened
from finetooth.data.records import IGNORED_LABEL, GivenTokens, Origin

MASKS = ("loss_mask", "completion_mask", "assistant_masks")
NAMES = ("input_ids", "labels", *MASKS, "attention_mask", "position_ids", "seq_lengths")

_LARGEST_ID = 2**31 - 1


def read_tokens(root: Entry, origin: Origin) -> GivenTokens:
    """Reads a record of this format."""
    ids = _integers(root, "input_ids", least=0)
    if not len(ids):
        raise UnfitError("no tokens", "remove the record")
    weights = _weights(root, ids)
    begin, end = _without_padding(root, len(ids))
    _require_one_document(root, len(ids), begin, end)
    padding_trained = np.flatnonzero(np.concatenate([weights[:begin], weights[end:]]))
    if len(padding_trained):
        fact = f"a target where {root.label('attention_mask')} is 0"
        raise UnfitError(fact, "give padding the label -100, or correct the attention mask")
    weights = weights[begin:end].copy()
    weights[0] = 0  # nothing predicts the first token
    return GivenTokens(ids[begin:end].astype(np.int32), weights.astype(np.float32), origin)


def _weights(root: Entry, ids: np.ndarray) -> np.ndarray:
    """Bool [T], true at the targets; all that the record holds of labels and masks must say the same."""
    given: dict[str, np.ndarray] = {}
    if not is_empty(root.peek("labels")):
        given["labels"] = _from_labels(root, ids)
    for name in MASKS:
        if not is_empty(root.peek(name)):
            given[name] = _zeros_and_ones(root, name, len(ids)) == 1
    if not given:
        fact = f"neither {root.label('labels')} nor {root.label('loss_mask')}"
        raise UnfitError(fact, "add one of them, so that it is known which tokens are trained")
    (first, weights), *others = given.items()
    for name, other in others:
        if differing := np.flatnonzero(weights[1:] != other[1:]).tolist():
            fact = f"{root.label(first)} and {root.label(name)} disagree at token {differing[0] + 1}"
            raise UnfitError(fact, "keep the one that is right")
    return weights


def _from_labels(root: Entry, ids: np.ndarray) -> np.ndarray:
    labels = _integers(root, "labels", least=IGNORED_LABEL)
    label = root.label("labels")
    _require_length(label, len(labels), len(ids))
    is_target = labels != IGNORED_LABEL
    wrong = np.flatnonzero(is_target & (labels != ids))
    if not len(wrong):
        return is_target
    place = int(wrong[0])
    shifted = is_target[:-1]
    if shifted.any() and np.array_equal(labels[:-1][shifted], ids[1:][shifted]):
        fact = f"{label} is shifted by one: it holds at place {place} the token of place {place + 1}"
        raise UnfitError(fact, "write each label at the place of its own token")
    fact = f"{label} holds {labels[place]} at place {place}, where the token is {ids[place]}"
    raise UnfitError(fact, "write the token itself, or -100 where nothing is trained")


def _without_padding(root: Entry, num_tokens: int) -> tuple[int, int]:
    """Where the tokens begin and end that attention_mask lets be seen."""
    if is_empty(root.peek("attention_mask")):
        return 0, num_tokens
    seen = np.flatnonzero(_zeros_and_ones(root, "attention_mask", num_tokens))
    label = root.label("attention_mask")
    if not len(seen):
        raise UnfitError(f"{label} is 0 everywhere", "remove the record")
    begin, end = int(seen[0]), int(seen[-1]) + 1
    if end - begin != len(seen):
        raise UnfitError(f"{label} is 0 between tokens", "only padding at the ends can be left out")
    return begin, end


def _require_one_document(root: Entry, num_tokens: int, begin: int, end: int) -> None:
    """Refuses a row of several documents, which would see each other if it were trained as one."""
    remedy = "write one document per record; finetooth packs them itself"
    if not is_empty(root.peek("position_ids")):
        positions = _integers(root, "position_ids", least=0)
        _require_length(root.label("position_ids"), len(positions), num_tokens)
        restarts = np.flatnonzero(np.diff(positions[begin:end]) < 0)
        if len(restarts):
            fact = f"{root.label('position_ids')} begin again at token {begin + int(restarts[0]) + 1}"
            raise UnfitError(f"{fact}: several documents in one row", remedy)
    if not is_empty(root.peek("seq_lengths")):
        lengths = _integers(root, "seq_lengths", least=1)
        if len(lengths) > 1:
            raise UnfitError(f"{root.label('seq_lengths')} names {len(lengths)} documents in one row", remedy)


def _zeros_and_ones(root: Entry, name: str, num_tokens: int) -> np.ndarray:
    values = root.list_of(name)
    _require_length(root.label(name), len(values), num_tokens)
    for place, value in enumerate(values):
        if not isinstance(value, int | float) or value not in (0, 1):
            fact = f"{root.inner(name)}[{place}] is {shortened(value)}"
            remedy = "write 0 or 1 for every token, and one document per record"
            raise UnfitError(fact, remedy)
    return np.array(values, np.int8)


def _integers(root: Entry, name: str, *, least: int) -> np.ndarray:
    """int64 [T]"""
    values: list[Any] = root.list_of(name)
    for place, value in enumerate(values):
        if type(value) is not int or not least <= value <= _LARGEST_ID:
            fact = f"{root.inner(name)}[{place}] is {shortened(value)}"
            raise UnfitError(fact, f"write whole numbers from {least} to {_LARGEST_ID}")
    return np.array(values, np.int64)


def _require_length(label: str, length: int, num_tokens: int) -> None:
    if length != num_tokens:
        fact = f"{label} has {length} entries for {num_tokens} tokens"
        raise UnfitError(fact, "give every token its own")
