"""A document as text whose targets can be seen: coloured on a terminal, in brackets everywhere."""

import itertools
from collections.abc import Iterable, Iterator

from rich.text import Text

from finetooth.base.terminal import make_visible
from finetooth.data.pieces import Piece, pieces_of
from finetooth.data.records import Document
from finetooth.data.tokenizer.tokenizer import Tokenizer

OPENING, CLOSING = "⟦", "⟧"
TARGET_STYLE = "bold green"
WEIGHTED_STYLE = "bold yellow"
CONTEXT_STYLE = "dim"
_LONGEST_TOKEN = 60


def mask_view(document: Document, tokenizer: Tokenizer, *, end: int | None = None) -> Text:
    """The document's text with each run of targets between ⟦ and ⟧; line ends show as ↵.

    A loss weight other than 1 stands in brackets of its own before the targets: ⟦⟦0.5⟧four⟧. Characters that
    do not print, and brackets that stand in the data, appear as escapes, so that nothing in a record can
    drive the terminal or pass for a mark. `end` leaves out the tokens from there on.

        <|im_start|>user↵
        2+2?<|im_end|>↵
        <|im_start|>assistant↵
        ⟦4<|im_end|>⟧↵
    """
    return pieces_view(pieces_of(document, tokenizer, end=end))


def pieces_view(pieces: Iterable[Piece]) -> Text:
    """The same of a document's pieces."""
    view = Text()
    for loss_weight, run in itertools.groupby(pieces, lambda piece: piece.loss_weight):
        text = visible("".join(piece.text for piece in run)).replace("↵", "↵\n")
        if loss_weight == 0:
            view.append(text, CONTEXT_STYLE)
        else:
            mark = "" if loss_weight == 1 else f"{OPENING}{loss_weight:g}{CLOSING}"
            view.append(f"{OPENING}{mark}{text}{CLOSING}", _style(loss_weight))
    return view


def token_list(document: Document, tokenizer: Tokenizer, *, end: int | None = None) -> Iterator[Text]:
    """One line per token: its place in the document, its id, its loss weight and its text.

    Tokens that only together write whole characters share a line.

           0  151644     <|im_start|>
          14      19  1  4
    """
    for piece in pieces_of(document, tokenizer, end=end):
        yield _token_line(piece)


def visible(text: str) -> str:
    """Text in which everything can be seen and no bracket or line end is anything but a mark of this view."""
    for mark in (OPENING, CLOSING, "↵"):
        text = text.replace(mark, mark.encode("unicode_escape").decode())
    return make_visible(text.replace("\n", "↵"))


def _token_line(piece: Piece) -> Text:
    ids = "+".join(map(str, piece.token_ids))
    weight = f"{piece.loss_weight:g}" if piece.loss_weight else ""
    text = visible(piece.text).replace(" ", "␣")
    if len(text) > _LONGEST_TOKEN:
        text = f"{text[:_LONGEST_TOKEN]}… ({len(piece.text)} characters)"
    return Text(f"{piece.position:6}  {ids:>6}  {weight:>4}  {text}", _style(piece.loss_weight))


def _style(loss_weight: float) -> str:
    if loss_weight == 0:
        return CONTEXT_STYLE
    return TARGET_STYLE if loss_weight == 1 else WEIGHTED_STYLE
