"""What a run directory tells of a run, for those who will use its policy."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Counts, count_ledger


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
    """The facts of a run directory; summary: that of a run which has not written its own yet."""
    told: Mapping[str, Any] = summary or json.loads((folder / "summary.json").read_bytes())
    evaluations = _evaluations(folder / "metrics.jsonl", until=told.get("final_step", math.inf))
    return RunFacts(
        config=config,
        counts=count_ledger(folder / "ledger.jsonl"),
        first=evaluations[0] if evaluations else {},
        last=evaluations[-1] if evaluations else {},
        summary=told,
        environment=json.loads((folder / "environment.json").read_bytes()),
    )


def _evaluations(path: Path, *, until: float) -> list[dict[str, Any]]:
    """The first and the last line of metrics.jsonl that an evaluation wrote through a step."""
    found: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for text in file:
            if '"train_loss"' in text and text.endswith("\n"):
                line = json.loads(text)
                found = [*found[:1], line] if line["step"] <= until else found
    return found
