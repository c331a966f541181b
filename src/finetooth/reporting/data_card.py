"""data.json of a run directory: what was trained on, to be looked at without the records and the tokenizer.

Figures and sentences about all records; some records with their documents, whose tokens are gathered into
stretches of one loss weight; and the rows of the first step.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from finetooth.base.errors import FinetoothError, problem
from finetooth.base.files import write_atomically
from finetooth.base.kinds import require_kind
from finetooth.batching.packing import Layout
from finetooth.config.schema import SFTConfig
from finetooth.data.pieces import Piece, pieces_of
from finetooth.data.preparation import PreparedData
from finetooth.data.records import Document, DocumentSource
from finetooth.data.templates.template import Template
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.evaluation.run_files import DataSummary, ShownSource
from finetooth.reporting.samples import Sample, choose_samples
from finetooth.reporting.step_report import RowReport, report_step
from finetooth.reporting.summary import remarks_on_kept, summary_data

NAME = "data.json"

_RECORDS_OF_EACH_KIND = 3
_TOKENS_SHOWN = 6_000
_TEXT_SHOWN = 2_000
_DOCUMENTS_LOOKED_AT = 1_000
_ROWS_SHOWN = 12
_DOCUMENTS_OF_A_ROW = 64
_STRETCHES_OF_A_DOCUMENT = 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens of one loss weight that follow one another; of the documents of rows, no text."""

    num_tokens: int
    loss_weight: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """A document; of a long one the beginning and the end, between which `num_hidden` tokens are left out."""

    num_tokens: int
    num_targets: int
    beginning: list[Stretch]
    num_hidden: int = 0
    end: list[Stretch] = field(default_factory=list[Stretch])


@dataclass(frozen=True, slots=True)
class ShownRecord:
    """A record, what it was chosen for, and its documents; where it has none, its text."""

    origin: str
    split: str
    state: str
    kinds: list[str]
    reason: str
    documents: list[ShownDocument]
    text: str


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row, the first of whose documents are shown; the share `fill` of its places holds tokens."""

    num_documents: int
    num_tokens: int
    num_targets: int
    fill: float
    documents: list[ShownDocument]


@dataclass(frozen=True, slots=True)
class ShownStep:
    """The first step, and the first rows of it that rank 0 trains."""

    number: int
    num_documents: int
    num_tokens: int
    num_targets: int
    world_size: int
    num_rows: int
    rows: list[ShownRow]


@dataclass(frozen=True, slots=True)
class Endings:
    """Of so many documents with a prompt and targets, so many have a stop token as their last target."""

    num_looked_at: int
    num_ended: int
    stop_tokens: list[str]


@dataclass(frozen=True, slots=True)
class DataCard:
    """What data.json holds.

    summary:  as `finetooth prepare --json` gives it: counts and statistics by split, and the rest
    remarks:  sentences about what was not read or changed
    sources:  of each source path, split, format, and the SHA-256 of each file
    """

    tokenizer: str
    summary: dict[str, Any]
    remarks: list[str]
    sources: list[dict[str, Any]]
    endings: Endings
    records: list[ShownRecord]
    step: ShownStep


def write_data_card(
    folder: Path,
    prepared: PreparedData,
    config: SFTConfig,
    *,
    documents: DocumentSource,
    layout: Layout,
    world_size: int = 1,
) -> None:
    """Writes data.json into a run directory.

    documents: those that are trained, of which `prepared` may hold more
    layout:    how the documents of a step are laid into rows
    """
    samples = choose_samples(prepared, config, num_each=_RECORDS_OF_EACH_KIND, is_rendered=False)
    step = report_step(documents, config, number=1, world_size=world_size, layout=layout)
    settings = msgspec.json.decode((prepared.folder / "prepared.json").read_bytes())["settings"]
    card = DataCard(
        tokenizer=config.model.tokenizer or config.model.path or "",
        summary=summary_data(prepared),
        remarks=remarks_on_kept(prepared, config),
        sources=settings["sources"],
        endings=_endings(documents, prepared.template),
        records=_records(samples, prepared.tokenizer),
        step=ShownStep(
            number=1,
            num_documents=len(step.step.documents),
            num_tokens=step.step.num_tokens,
            num_targets=step.step.num_targets,
            world_size=world_size,
            num_rows=len(step.rows),
            rows=[_row(row) for row in step.rows[:_ROWS_SHOWN]],
        ),
    )
    # ASCII, so that nothing in it drives a terminal.
    write_atomically(folder / NAME, json.dumps(msgspec.to_builtins(card)).encode())


def read_data_card(folder: Path) -> DataCard | None:
    """data.json of a run directory; None where there is none. Raises FinetoothError for anything else."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        card = msgspec.json.decode(path.read_bytes(), type=DataCard)
        require_kind(card.summary, DataSummary)
        require_kind(card.sources, list[ShownSource])
    except msgspec.MsgspecError as error:
        fact = f"holds something else than a run writes ({error})"
        raise FinetoothError(problem(path, fact, "remove it; the report says then what it lacks")) from None
    return card


def _endings(documents: DocumentSource, template: Template) -> Endings:
    """Looks at documents with a prompt and targets, spread evenly over all."""
    num_all = len(documents.lengths)
    places = np.unique(np.linspace(0, num_all - 1, min(num_all, _DOCUMENTS_LOOKED_AT)).astype(np.int64))
    looked_at = map(documents.document, places.tolist())
    asked = [document for document in looked_at if document.prompt_length and document.num_targets]
    stops = set(template.stop_token_ids)
    num_ended = sum(int(document.token_ids[_last_target(document)]) in stops for document in asked)
    names = [template.tokenizer.decode([token_id]) for token_id in template.stop_token_ids]
    return Endings(len(asked), num_ended, names)


def _last_target(document: Document) -> int:
    return int(np.flatnonzero(document.loss_weights)[-1])


def _records(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[ShownRecord]:
    num_documents = sum(len(sample.record.documents) for sample in samples)
    limit = max(2, _TOKENS_SHOWN // max(1, num_documents))
    return [_record(sample, tokenizer, limit) for sample in samples]


def _record(sample: Sample, tokenizer: Tokenizer, limit: int) -> ShownRecord:
    record, text = sample.record, sample.record.text
    return ShownRecord(
        origin=str(record.entry.origin),
        split=record.entry.line["split"],
        state=record.state,
        kinds=list(sample.kinds),
        reason=record.reason,
        documents=[_document(document, tokenizer, limit) for document in record.documents],
        text=text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]} …",
    )


def _document(document: Document, tokenizer: Tokenizer, limit: int) -> ShownDocument:
    length = len(document.token_ids)
    first, last = (limit // 2, length - limit // 2) if length > limit else (length, length)
    return ShownDocument(
        num_tokens=length,
        num_targets=document.num_targets,
        beginning=list(_stretches(pieces_of(document, tokenizer, end=first))),
        num_hidden=last - first,
        end=list(_stretches(pieces_of(document, tokenizer, start=last))),
    )


def _stretches(pieces: Iterator[Piece]) -> Iterator[Stretch]:
    for loss_weight, run in itertools.groupby(pieces, lambda piece: piece.loss_weight):
        together = list(run)
        num_tokens = sum(len(piece.token_ids) for piece in together)
        yield Stretch(num_tokens, loss_weight, "".join(piece.text for piece in together))


def _row(row: RowReport) -> ShownRow:
    return ShownRow(
        num_documents=len(row.documents),
        num_tokens=row.num_tokens,
        num_targets=row.num_targets,
        fill=row.fill,
        documents=[_drawn(document) for document in row.documents[:_DOCUMENTS_OF_A_ROW]],
    )


def _drawn(document: Document) -> ShownDocument:
    """Where the targets of a document stand; of very many changes, the first."""
    weights = document.loss_weights.tolist()
    runs = [Stretch(len(list(run)), weight) for weight, run in itertools.groupby(weights)]
    shown = runs[:_STRETCHES_OF_A_DOCUMENT]
    num_hidden = len(weights) - sum(run.num_tokens for run in shown)
    return ShownDocument(len(weights), document.num_targets, shown, num_hidden)
