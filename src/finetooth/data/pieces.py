"""A document token by token, each with its text; joined, the texts are the text of the document."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetooth.data.records import Document
from finetooth.data.tokenizer.tokenizer import Tokenizer

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


def pieces_of(
    document: Document, tokenizer: Tokenizer, *, start: int = 0, end: int | None = None
) -> Iterator[Piece]:
    """The pieces of a document, in order; those of its tokens from `start` to before `end`.

    A token is decoded behind the piece before it, because alone it may lose its first space. Where a
    character lies across two loss weights, its parts show as U+FFFD.
    """
    ids, weights = document.token_ids.tolist()[:end], document.loss_weights.tolist()[:end]
    context = max(0, start - 1)
    for stop in range(start + 1, len(ids) + 1):
        before, text = tokenizer.decode(ids[context:start]), tokenizer.decode(ids[context:stop])
        is_last = stop == len(ids) or weights[stop] != weights[start] or stop - start == _MOST_TOKENS
        if text.endswith(_HALF) and not is_last:
            continue
        own = text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[start:stop])
        yield Piece(start, tuple(ids[start:stop]), weights[start], own)
        context, start = start, stop


def document_data(document: Document, tokenizer: Tokenizer) -> dict[str, Any]:
    """A document as JSON holds it; `pieces` are its texts, each with how many tokens make it up."""
    return {
        "origin": str(document.origin),
        "prompt_length": document.prompt_length,
        "token_ids": document.token_ids.tolist(),
        "loss_weights": document.loss_weights.tolist(),
        "pieces": [[piece.text, len(piece.token_ids)] for piece in pieces_of(document, tokenizer)],
    }
