"""A document as text whose targets can be seen: coloured on a terminal, in brackets everywhere."""

from collections.abc import Iterator

import numpy as np
from rich.text import Text

from finetooth.base.terminal import make_visible
from finetooth.data.records import Document
from finetooth.data.tokenizer import Tokenizer

OPENING, CLOSING = "⟦", "⟧"
TARGET_STYLE = "bold green"
CONTEXT_STYLE = "dim"


def mask_view(document: Document, tokenizer: Tokenizer) -> Text:
    """The document's text with each run of targets between ⟦ and ⟧; line ends show as ↵.

    Control characters, and brackets that stand in the data, appear as escapes, so that nothing in a record
    can drive the terminal or pass for a mark.

        <|im_start|>user↵
        2+2?<|im_end|>↵
        <|im_start|>assistant↵
        ⟦4<|im_end|>⟧↵
    """
    view = Text()
    for is_target, text in _runs(document, tokenizer):
        if is_target:
            view.append(f"{OPENING}{_visible(text)}{CLOSING}", TARGET_STYLE)
        else:
            view.append(_visible(text), CONTEXT_STYLE)
    return view


def _runs(document: Document, tokenizer: Tokenizer) -> Iterator[tuple[bool, str]]:
    """Runs of targets and of context with their text; joined, they are the text of the whole document."""
    is_target = document.loss_weights > 0
    starts = [0, *(np.flatnonzero(np.diff(is_target)) + 1).tolist()]
    token_ids = document.token_ids.tolist()
    before = ""
    for start, end in zip(starts, [*starts[1:], len(token_ids)], strict=True):
        until = tokenizer.decode(token_ids[:end])
        # A run decoded by itself may lose its first space; but a character can lie across two runs.
        alone = not until.startswith(before)
        yield (
            bool(is_target[start]),
            tokenizer.decode(token_ids[start:end]) if alone else until[len(before) :],
        )
        before = until


def _visible(text: str) -> str:
    visible = make_visible(text, keep="\n")
    for bracket in (OPENING, CLOSING):
        visible = visible.replace(bracket, bracket.encode("unicode_escape").decode())
    return visible.replace("\n", "↵\n")
