"""What a run directory tells of a run, for those who will use its policy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Counts, count_ledger
from finetooth.evaluation.run_files import (
    Environment,
    MetricsLine,
    Summary,
    each_object,
    read_object,
    require_file,
    undamaged,
)
from finetooth.training.metrics import is_evaluation

_TOLD_OF_RUN = ("num_steps", "num_documents", "num_tokens", "num_targets")
_TOLD_OF_MACHINE = ("versions", "python", "device", "template")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run, as its directory describes it.

    counts:      by split, what the ledger says
    first, last: the figures of the first evaluation and of that of the policy, by default the last one
    summary:     what summary.json holds, or will hold
    environment: versions, device, and what was noted of the template
    """

    config: SFTConfig
    counts: Mapping[str, Counts]
    first: Mapping[str, Any]
    last: Mapping[str, Any]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]


def read_facts(folder: Path, config: SFTConfig, *, summary: Mapping[str, Any] | None = None) -> RunFacts:
    """The facts of a run directory; summary: that of a run which has not written its own yet.

    Raises FinetoothError for a file that is missing or that no run writes so.
    """
    told = summary or read_object(folder / "summary.json", Summary, needs=_TOLD_OF_RUN)
    evaluations = _evaluations(folder / "metrics.jsonl", until=told.get("final_step", math.inf))
    return RunFacts(
        config=config,
        counts=_counts(folder / "ledger.jsonl"),
        first=evaluations[0] if evaluations else {},
        last=evaluations[-1] if evaluations else {},
        summary=told,
        environment=read_object(folder / "environment.json", Environment, needs=_TOLD_OF_MACHINE),
    )


def _counts(ledger: Path) -> Mapping[str, Counts]:
    require_file(ledger)
    with undamaged(ledger):
        return count_ledger(ledger)


def _evaluations(path: Path, *, until: float) -> list[dict[str, Any]]:
    """The first and the last line of metrics.jsonl that an evaluation wrote through a step."""
    require_file(path)
    found: list[dict[str, Any]] = []
    for line in each_object(path, MetricsLine):
        if is_evaluation(line) and line["step"] <= until:
            found = [*found[:1], line]
    return found
