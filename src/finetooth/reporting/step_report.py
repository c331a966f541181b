"""One update of a run looked up in its schedule: its documents, and the rows that one rank trains."""

from dataclasses import dataclass
from typing import Any

from finetooth.base.errors import ConfigError, problem
from finetooth.batching.packing import Layout, Row, forward_passes, layout_of
from finetooth.batching.schedule import Schedule, Step, schedule_of
from finetooth.config.schema import SFTConfig
from finetooth.data.records import Document, DocumentSource


@dataclass(frozen=True, slots=True)
class RowReport:
    """A row of one rank.

    fill: the share of its places that hold tokens: of row_tokens where documents are packed, of the longest
          row of its forward pass where they are not
    """

    documents: tuple[Document, ...]
    num_tokens: int
    num_targets: int
    fill: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step, and the rows of it that `rank` of `world_size` trains; empty rows included."""

    step: Step
    num_steps: int
    rank: int
    world_size: int
    rows: tuple[RowReport, ...]

    @property
    def fill(self) -> float:
        """The mean over the rows."""
        return sum(row.fill for row in self.rows) / len(self.rows)

    def as_data(self) -> dict[str, Any]:
        """The step as JSON holds it; of its documents, origin and sizes."""
        return {
            "step": self.step.number,
            "num_steps": self.num_steps,
            "epoch": self.step.epoch,
            "num_documents": len(self.step.documents),
            "num_tokens": self.step.num_tokens,
            "num_targets": self.step.num_targets,
            "total_loss_weight": self.step.total_loss_weight,
            "rank": self.rank,
            "world_size": self.world_size,
            "fill": round(self.fill, 4),
            "rows": [
                {"tokens": row.num_tokens, "targets": row.num_targets, "fill": round(row.fill, 4)}
                | {"documents": [_sizes(document) for document in row.documents]}
                for row in self.rows
            ],
        }


def report_step(
    documents: DocumentSource,
    config: SFTConfig,
    *,
    number: int,
    rank: int = 0,
    world_size: int = 1,
    layout: Layout | None = None,
) -> StepReport:
    """What the step trains, and in which rows of one rank.

    documents: those that are trained
    layout:    default: that of the settings, for a model whose documents can share a row
    Raises ConfigError for a step or rank that does not exist.
    """
    schedule, layout = schedule_of(config.training, documents), layout or layout_of(config.training)
    _require_existing(schedule, number, rank, world_size)
    step = schedule.step(number)
    rows = schedule.rows(step, layout=layout, rank=rank, world_size=world_size)
    reports = [
        _row_report(row, documents, layout, places)
        for rows_of_pass in forward_passes(rows, layout.rows_at_once)
        for places in [_places(rows_of_pass, documents, layout)]
        for row in rows_of_pass
    ]
    return StepReport(step, schedule.num_steps, rank, world_size, tuple(reports))


def _require_existing(schedule: Schedule, number: int, rank: int, world_size: int) -> None:
    problems: list[str] = []
    if number > schedule.num_steps:
        fact = f"the schedule has no step {number}"
        problems.append(problem("--step", fact, f"give a number from 1 to {schedule.num_steps}"))
    if rank >= world_size:
        fact = f"{world_size} process{'es have' if world_size > 1 else ' has'} no rank {rank}"
        remedy = f"give a rank from 0 to {world_size - 1}, or a larger --world"
        problems.append(problem("--rank", fact, remedy if world_size > 1 else "give --world"))
    if problems:
        raise ConfigError(problems)


def _places(rows: list[Row], documents: DocumentSource, layout: Layout) -> int:
    """How many tokens a row of this forward pass has place for."""
    if layout.packing:
        return layout.row_tokens
    return max(1, *(int(documents.lengths[list(row)].sum()) for row in rows))


def _row_report(row: Row, documents: DocumentSource, layout: Layout, places: int) -> RowReport:
    contents = tuple(documents.document(number) for number in row)
    num_tokens = sum(len(document.token_ids) for document in contents)
    num_targets = sum(document.num_targets for document in contents)
    return RowReport(contents, num_tokens, num_targets, num_tokens / places)


def _sizes(document: Document) -> dict[str, Any]:
    return {
        "origin": str(document.origin),
        "tokens": len(document.token_ids),
        "targets": document.num_targets,
        "loss_weight": float(document.loss_weights.sum(dtype="float64")),
    }
