"""The part of a document around its first targets, short enough to be looked at between other things."""

import numpy as np
from rich.text import Text

from finetooth.data.pieces import pieces_of
from finetooth.data.records import Document
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.reporting.mask_view import pieces_view

_TOKENS_BEFORE, _TOKENS_BEHIND = 60, 60
_ELLIPSIS = "…"


def excerpt_view(document: Document, tokenizer: Tokenizer) -> Text:
    """Up to sixty tokens before the first target and from it on, targets between ⟦ and ⟧; … where it is cut.

    … 2 and 2.<|im_end|>↵
    <|im_start|>assistant↵
    ⟦4<|im_end|>⟧↵
    """
    start, end = _place(document)
    view = pieces_view(pieces_of(document, tokenizer, start=start, end=end))
    before = f"{_ELLIPSIS} " if start else ""
    behind = f" {_ELLIPSIS}" if end < len(document.token_ids) else ""
    return Text.assemble(before, view, behind)


def excerpt_data(document: Document, tokenizer: Tokenizer) -> dict[str, object]:
    """The whole document's sizes and the excerpt's pieces, as JSON holds them."""
    start, end = _place(document)
    pieces = pieces_of(document, tokenizer, start=start, end=end)
    return {
        "origin": str(document.origin),
        "tokens": len(document.token_ids),
        "targets": document.num_targets,
        "pieces": [[piece.text, piece.loss_weight] for piece in pieces],
    }


def _place(document: Document) -> tuple[int, int]:
    """Where the excerpt begins and ends, in tokens."""
    first = int(np.argmax(document.loss_weights > 0))
    return max(0, first - _TOKENS_BEFORE), min(len(document.token_ids), first + _TOKENS_BEHIND)
