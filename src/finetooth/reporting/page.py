"""Samples and figures as one HTML page that needs nothing else: no script, no font, no network.

Whatever comes from the data is escaped twice over: characters that do not print become visible escapes, and
Jinja2 escapes the rest for HTML. The page's own policy allows its one style sheet, by its hash, and nothing
besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetooth.base.terminal import make_visible
from finetooth.data.pieces import Piece, pieces_of
from finetooth.data.records import Document
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.reporting.mask_view import visible
from finetooth.reporting.rendering import MAX_BYTES, environment_of
from finetooth.reporting.samples import Sample

_TOKENS_SHOWN = 20_000
_TEXT_SHOWN = 20_000
_HISTOGRAM_BARS = 24


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page says about all records.

    headline:   what the page is about, for instance the training files
    properties: name and value of the template, the tokenizer, …
    splits:     by split, name and value of each count that it has
    remarks:    sentences about what was not kept, not read or changed
    lengths:    int64 [S], tokens of each training document
    """

    headline: str
    properties: tuple[tuple[str, str], ...]
    splits: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    remarks: tuple[str, ...] = ()
    lengths: np.ndarray | None = None


def html_page(facts: Facts, samples: Sequence[Sample], tokenizer: Tokenizer) -> str:
    """The whole page, at most 2 MB: where documents are many or long, only their beginnings and ends stand in
    it, and it says so."""
    tokens_shown = _TOKENS_SHOWN
    while True:
        page = _render(facts, samples, tokenizer, tokens_shown)
        if len(page.encode()) <= MAX_BYTES or tokens_shown < len(samples):
            return page
        tokens_shown //= 2


def _render(facts: Facts, samples: Sequence[Sample], tokenizer: Tokenizer, tokens_shown: int) -> str:
    num_documents = sum(len(sample.record.documents) for sample in samples)
    limit = max(2, tokens_shown // max(1, num_documents))
    sections = [_section(sample, tokenizer, limit) for sample in samples]
    names = list(dict.fromkeys(name for counts in facts.splits.values() for name in counts))
    bars = _bars(facts.lengths)
    template = environment_of("inspect.css").get_template("inspect.html.jinja")
    return template.render(facts=facts, count_names=names, bars=bars, sections=sections)


def _section(sample: Sample, tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    record = sample.record
    text = record.text if len(record.text) <= _TEXT_SHOWN else record.text[:_TEXT_SHOWN] + " …"
    return {
        "kinds": sample.kinds,
        "number": record.entry.number,
        "origin": str(record.entry.origin),
        "split": record.entry.line["split"],
        "state": record.state,
        "reason": record.reason,
        "remedy": record.remedy,
        "documents": [_document(document, tokenizer, limit) for document in record.documents],
        "text": make_visible(text, keep="\n"),
    }


def _document(document: Document, tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    """A document's tokens; of more than `limit`, those at the beginning and at the end."""
    length = len(document.token_ids)
    first, last = (limit // 2, length - limit // 2) if length > limit else (length, length)
    total = float(document.loss_weights.sum(dtype="float64"))
    return {
        "num_tokens": length,
        "num_targets": document.num_targets,
        "loss_weight": "" if total == document.num_targets else f"{total:,g}",
        "beginning": [_token(piece) for piece in pieces_of(document, tokenizer, end=first)],
        "num_hidden": last - first,
        "end": [_token(piece) for piece in pieces_of(document, tokenizer, start=last)],
    }


def _token(piece: Piece) -> dict[str, str]:
    """A token with what hovering over it shows, and its class: none, t (target) or w (weighted target)."""
    shown = visible(piece.text)
    ids = "+".join(map(str, piece.token_ids))
    kind = "" if piece.loss_weight == 0 else "t" if piece.loss_weight == 1 else "w"
    told = f"token {piece.position} · id {ids} · loss weight {piece.loss_weight:g} · {shown}"
    return {"text": shown.replace("↵", "↵\n"), "kind": kind, "told": told}


def _bars(lengths: np.ndarray | None) -> list[dict[str, Any]]:
    """A histogram of lengths: of each bar its bounds, its count, and its height as a share of the highest."""
    if lengths is None:
        return []
    width = max(1, -(-int(lengths.max() + 1) // _HISTOGRAM_BARS))
    counts = np.bincount(lengths // width)
    highest = int(counts.max())
    return [
        {"first": place * width, "last": (place + 1) * width - 1, "count": count, "height": count / highest}
        for place, count in enumerate(counts.tolist())
    ]
