"""The course of a run: what metrics.jsonl holds, as columns, and thinned so that it can be drawn.

N logged updates, P points of the thinned course.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetooth.evaluation.run_files import MetricsLine, each_object

COLUMNS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "peak_memory_mb")

# How wide a smoothed value looks to each side, as a share of the points.
_SMOOTHED_SHARE = 0.025
_FEWEST_SMOOTHED = 20
# Nothing that is measured is so large, and sums of smaller numbers stay finite.
_TOO_LARGE = 1e30
_NUMBERS = ("step", "loss", "learning_rate", "grad_norm", "num_targets", "num_tokens", "seconds")


@dataclass(frozen=True, slots=True)
class Course:
    """A run's updates and evaluations, in order.

    steps:       int64 [N], the number of each logged update
    tokens:      float64 [N], tokens trained through it; where updates between are not logged, each of them
                 counts as the logged one behind it
    columns:     float64 [N] by name of COLUMNS; not a number where a line does not tell it
    num_targets: float64 [N]
    seconds:     float64 [N], what each update took
    is_complete: whether every update from the first to the last is logged
    evaluations: the lines that evaluations wrote
    notes:       the lines that tell of changes, skipped steps and spikes
    """

    steps: np.ndarray
    tokens: np.ndarray
    columns: Mapping[str, np.ndarray]
    num_targets: np.ndarray
    seconds: np.ndarray
    is_complete: bool
    evaluations: Sequence[Mapping[str, Any]]
    notes: Sequence[Mapping[str, Any]]

    def tokens_through(self, steps: np.ndarray) -> np.ndarray:
        """Tokens trained through each of these steps, also through those that were not logged."""
        return np.interp(steps, np.append(0, self.steps), np.append(0.0, self.tokens))


@dataclass(frozen=True, slots=True)
class Points:
    """A course as at most so many points, each of which stands for logged updates that follow one another.

    first, last:     int64 [P], the first and the last update of each
    tokens:          float64 [P], tokens trained through the last
    low, mean, high: float64 [P] by column; not a number where nothing is known. The mean of losses is over
                     targets, that of tokens per second over time.
    smooth:          float64 [P], the loss averaged over neighbours; None of a course of few points
    """

    first: np.ndarray
    last: np.ndarray
    tokens: np.ndarray
    low: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    high: Mapping[str, np.ndarray]
    smooth: np.ndarray | None


def read_course(path: Path) -> Course:
    """Reads metrics.jsonl; a line that was cut off while it was written is left out.

    Raises FinetoothError for a line that is no JSON object.
    """
    updates: list[list[float]] = []
    memory: list[float] = []
    evaluations: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for line in each_object(path, MetricsLine):
        if "loss" in line:
            updates.append([_number(line.get(name)) for name in _NUMBERS])
            memory.append(_number(line.get("peak_memory_mb")))
        if "train_loss" in line:
            evaluations.append(line)
        if any(name in line for name in ("changes", "skipped", "spike")):
            notes.append(line)
    table = np.array(updates, np.float64).reshape(len(updates), len(_NUMBERS))
    steps, loss, learning_rate, grad_norm, num_targets, num_tokens, seconds = table.T
    gaps = np.diff(steps, prepend=0.0)
    return Course(
        steps=steps.astype(np.int64),
        tokens=np.cumsum(num_tokens * gaps),
        columns={
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": num_tokens / np.where(seconds > 0, seconds, np.nan),
            "peak_memory_mb": np.array(memory, np.float64),
        },
        num_targets=num_targets,
        seconds=seconds,
        is_complete=bool((gaps == 1).all()),
        evaluations=evaluations,
        notes=notes,
    )


def thinned(course: Course, *, most: int) -> Points:
    """The course as at most so many points.

    >>> import json
    >>> from tempfile import NamedTemporaryFile
    >>> file = NamedTemporaryFile("w+")
    >>> for step in range(1, 5):
    ...     print(json.dumps({"step": step, "loss": step, "num_targets": step}), file=file, flush=True)
    >>> points = thinned(read_course(Path(file.name)), most=2)
    >>> points.first.tolist(), points.last.tolist(), points.high["loss"].tolist()
    ([1, 3], [2, 4], [2.0, 4.0])
    >>> points.mean["loss"].tolist()
    [1.6666666666666667, 3.5714285714285716]
    """
    num_points = min(most, len(course.steps))
    edges = np.linspace(0, len(course.steps), num_points + 1).round().astype(np.int64)
    parts = [slice(start, stop) for start, stop in itertools.pairwise(edges.tolist())]
    weights = {"loss": course.num_targets, "tokens_per_second": course.seconds}
    even = np.ones(len(course.steps))
    columns = {
        name: [_low_mean_high(values[part], weights.get(name, even)[part]) for part in parts]
        for name, values in course.columns.items()
    }
    tables = {name: np.array(values).reshape(num_points, 3).T for name, values in columns.items()}
    return Points(
        first=course.steps[edges[:-1]] if num_points else course.steps,
        last=course.steps[edges[1:] - 1] if num_points else course.steps,
        tokens=course.tokens[edges[1:] - 1] if num_points else course.tokens,
        low={name: table[0] for name, table in tables.items()},
        mean={name: table[1] for name, table in tables.items()},
        high={name: table[2] for name, table in tables.items()},
        smooth=_smoothed(tables["loss"][1], np.array([course.num_targets[part].sum() for part in parts])),
    )


def is_number(value: object) -> bool:
    """Whether it is a number that can be drawn and told."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _TOO_LARGE


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and is_number(value) else math.nan


def _low_mean_high(values: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    known = np.isfinite(values)
    if not known.any():
        return math.nan, math.nan, math.nan
    values, weights = values[known], np.nan_to_num(weights[known])
    mean = float(values @ weights / weights.sum()) if weights.sum() > 0 else float(values.mean())
    return float(values.min()), mean, float(values.max())


def _smoothed(values: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """Each value averaged with its neighbours, the near ones counting most (a Gaussian), all by weight."""
    if len(values) < _FEWEST_SMOOTHED:
        return None
    width = max(1.0, _SMOOTHED_SHARE * len(values))
    places = np.arange(len(values))
    known = np.isfinite(values)
    nearness = np.exp(-0.5 * ((places[:, None] - places[None, :]) / width) ** 2)
    nearness = nearness * np.where(known, np.nan_to_num(weights, nan=1.0), 0.0)[None, :]
    total = nearness.sum(axis=1)
    sums = nearness @ np.nan_to_num(values)
    return np.divide(sums, total, out=np.full(len(values), np.nan), where=total > 0)
