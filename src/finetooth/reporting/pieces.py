"""A document token by token, each with its text; joined, the texts are the text of the document."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetooth.data.records import Document
from finetooth.data.tokenizer import Tokenizer

_HALF = "\ufffd"  # what decoding gives for a part of a character
_MOST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, or several that only together write whole characters, of one loss weight.

    position: of its first token in the document, counted from 0
    """

    position: int
    token_ids: tuple[int, ...]
    loss_weight: float
    text: str


def pieces_of(document: Document, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The pieces of a document, in order.

    A token is decoded behind the piece before it, because alone it may lose its first space. Where a
    character lies across two loss weights, its parts show as U+FFFD.
    """
    ids, weights = document.token_ids.tolist(), document.loss_weights.tolist()
    context = start = 0
    for end in range(1, len(ids) + 1):
        before, text = tokenizer.decode(ids[context:start]), tokenizer.decode(ids[context:end])
        is_last = end == len(ids) or weights[end] != weights[start] or end - start == _MOST_TOKENS
        if text.endswith(_HALF) and not is_last:
            continue
        own = text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[start:end])
        yield Piece(start, tuple(ids[start:end]), weights[start], own)
        context, start = start, end
