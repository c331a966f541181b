"""What a run was trained on, as its report shows it."""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetooth.data.ledger import Counts
from finetooth.reporting.data_card import DataCard, ShownDocument
from finetooth.reporting.numerals import in_words
from finetooth.reporting.run_reading import Run

_COUNTS = ("records", "kept", "dropped", "refused", "documents", "tokens", "targets")
_REASONS_SHOWN = 12
_SOURCES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram: where it begins, its width and its height, as shares, and what it stands for."""

    start: float
    width: float
    height: float
    told: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bars from 0 to the longest."""

    title: str
    bars: list[Bar]
    end: str


@dataclass(frozen=True, slots=True)
class DrawnDocument:
    """A document within its row: what it is, and stretches (start, width, kind) as shares of the row."""

    told: str
    stretches: list[tuple[float, float, str]]


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row, and what it holds, in words."""

    told: str
    documents: list[DrawnDocument]
    num_not_drawn: int


@dataclass(frozen=True, slots=True)
class DataView:
    """Tables, histograms, sentences, rows and records; card: None where there is no data.json.

    counts:  by split, name and value of each count of the ledger
    reasons: why records were not kept and how often, the most frequent first
    sources: split, path, format, records, tokens and the share of targets
    """

    counts: dict[str, list[tuple[str, str]]]
    reasons: list[tuple[str, int]]
    num_other_reasons: int
    sources: list[tuple[str, str, str, str, str, str]]
    num_other_sources: int
    histograms: list[Histogram]
    rows: list[DrawnRow]
    card: DataCard | None


def data_view(run: Run) -> DataView:
    """Everything that the ledger and data.json tell."""
    reasons = Counter[str]()
    for counted in run.counts.values():
        reasons.update(counted.reasons)
    splits = run.data.summary.get("splits", {}) if run.data is not None else {}
    statistics = {split: told.get("statistics", {}) for split, told in splits.items()}
    sources = _sources(run.data, statistics) if run.data is not None else []
    return DataView(
        counts={split: _counts(counted) for split, counted in run.counts.items()},
        reasons=reasons.most_common(_REASONS_SHOWN),
        num_other_reasons=max(0, len(reasons) - _REASONS_SHOWN),
        sources=sources[:_SOURCES_SHOWN],
        num_other_sources=max(0, len(sources) - _SOURCES_SHOWN),
        histograms=[histogram for split in statistics for histogram in _histograms(split, statistics[split])],
        rows=_rows(run.data) if run.data is not None else [],
        card=run.data,
    )


def _counts(counted: Counts) -> list[tuple[str, str]]:
    rows = [(name, f"{getattr(counted, name):,}") for name in _COUNTS]
    share = f"{counted.targets / counted.tokens:.1%}" if counted.tokens else "–"
    return [*rows, ("targets, share", share)]


def _sources(card: DataCard, statistics: Mapping[str, Any]) -> list[tuple[str, str, str, str, str, str]]:
    formats = {source["path"]: source["format"] for source in card.sources}
    rows: list[tuple[str, str, str, str, str, str]] = []
    for split, figures in statistics.items():
        for source in figures.get("sources", []):
            path, read_as = source["path"], formats.get(source["path"], "–")
            numbers = (f"{source['records']:,}", f"{source['tokens']:,}", f"{source['targets_share']:.1%}")
            rows.append((split, path, read_as, *numbers))
    return rows


def _histograms(split: str, statistics: Mapping[str, Any]) -> list[Histogram]:
    found: list[Histogram] = []
    lengths = statistics.get("lengths", {})
    if {"histogram", "median", "p95"} <= lengths.keys():
        edges, counts = lengths["histogram"]["edges"], lengths["histogram"]["counts"]
        told = [f"{low:,.0f} to {high:,.0f} tokens" for low, high in itertools.pairwise(edges)]
        title = f"{split}: tokens per document, median {lengths['median']:,.0f}, 95 % ≤ {lengths['p95']:,}"
        found.append(_histogram(title, told, counts, f"{edges[-1]:,.0f}"))
    turns = statistics.get("turns", {})
    if len(turns) > 1:
        most = max(map(int, turns))
        counts = [turns.get(str(number), 0) for number in range(most + 1)]
        told = [f"{number} answers" for number in range(most + 1)]
        found.append(_histogram(f"{split}: answers per conversation", told, counts, str(most)))
    return found


def _histogram(title: str, told: list[str], counts: list[int], end: str) -> Histogram:
    highest, width = max([*counts, 1]), 1 / max(1, len(counts))
    bars = [
        Bar(place * width, width, number / highest, f"{what}: {number:,}")
        for place, (what, number) in enumerate(zip(told, counts, strict=True))
    ]
    return Histogram(title, bars, end)


def _rows(card: DataCard) -> list[DrawnRow]:
    drawn: list[DrawnRow] = []
    for row in card.step.rows:
        num_places = max(1.0, row.num_tokens / row.fill) if row.fill else 1.0
        documents: list[DrawnDocument] = []
        start = 0
        for document in row.documents:
            documents.append(_drawn(document, start, num_places))
            start += document.num_tokens
        filled = f"{row.num_tokens:,} of {num_places:,.0f} places, {row.fill:.1%}"
        amounts = f"{in_words(row.num_documents, 'document')}, {in_words(row.num_targets, 'target')}"
        drawn.append(DrawnRow(f"{amounts}; {filled}", documents, row.num_documents - len(row.documents)))
    return drawn


def _drawn(document: ShownDocument, start: int, num_places: float) -> DrawnDocument:
    stretches: list[tuple[float, float, str]] = []
    for stretch in document.beginning:
        stretches.append((start / num_places, stretch.num_tokens / num_places, kind_of(stretch.loss_weight)))
        start += stretch.num_tokens
    if document.num_hidden:
        stretches.append((start / num_places, document.num_hidden / num_places, "hidden"))
    told = f"{in_words(document.num_tokens, 'token')}, {in_words(document.num_targets, 'target')}"
    return DrawnDocument(told, stretches)


def kind_of(loss_weight: float) -> str:
    """How a token is coloured: context, target, or weighted.

    >>> kind_of(0), kind_of(1), kind_of(0.5)
    ('c', 't', 'w')
    """
    return "c" if loss_weight == 0 else "t" if loss_weight == 1 else "w"
