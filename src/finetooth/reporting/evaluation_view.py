"""Evaluations as a table, and the figures in which runs are held side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth.config.figures import SHARES, is_better
from finetooth.reporting.course import is_number
from finetooth.reporting.numerals import figure, share
from finetooth.reporting.run_reading import Run

_FIRST_NAMES = ("train_loss", "dev_loss", "train_perplexity", "dev_perplexity", *SHARES)
_NO_FIGURES = ("step", "epoch", "time", "seconds")
_MOST_ROWS = 24
_MOST_COLUMNS = 10


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """Rows of step and values, some of which may be hidden.

    best: the step whose figure `best_by` is the best, the base model's apart
    """

    columns: list[str]
    rows: list[tuple[int, list[str]]]
    best: int | None
    best_by: str
    num_hidden_rows: int
    num_hidden_columns: int


def evaluation_table(run: Run) -> EvaluationTable:
    """The evaluations of a run; of many the first, the last, the best and others at even distances."""
    figures = [(int(line["step"]), _figures(line)) for line in run.course.evaluations]
    columns = _ordered([values for _, values in figures])
    best = best_step(run)
    shown = _shown_places([step for step, _ in figures], best)
    return EvaluationTable(
        columns=columns[:_MOST_COLUMNS],
        rows=[(figures[place][0], _cells(columns[:_MOST_COLUMNS], figures[place][1])) for place in shown],
        best=best,
        best_by=run.config.evaluation.best_by,
        num_hidden_rows=len(figures) - len(shown),
        num_hidden_columns=max(0, len(columns) - _MOST_COLUMNS),
    )


def best_step(run: Run) -> int | None:
    """The best step by `evaluation.best_by`, the base model's apart; None where that was not measured."""
    figure = run.config.evaluation.best_by
    step, best = None, None
    for line in run.course.evaluations:
        if line["step"] > 0 and is_number(line.get(figure)) and is_better(line[figure], best, by=figure):
            step, best = int(line["step"]), float(line[figure])
    return step


def side_by_side(runs: Sequence[Run]) -> list[tuple[str, list[str], int | None]]:
    """Name, values of each run, and the place of the best one, for each figure of the policies."""
    evaluations = [run.evaluations_of_policy for run in runs]
    lasts = [_figures(lines[-1]) if lines else {} for lines in evaluations]
    return [
        (
            name,
            [_cell(name, last.get(name)) for last in lasts],
            _best_place(name, [x.get(name) for x in lasts]),
        )
        for name in _ordered(lasts)
    ]


def headline(run: Run) -> list[tuple[str, str, str]]:
    """Name, first and last value of the figures that say most."""
    evaluations = run.evaluations_of_policy
    if not evaluations:
        return []
    first, last = _figures(evaluations[0]), _figures(evaluations[-1])
    names = [name for name in ("dev_loss", "exact_match", "stop_rate") if name in last] or ["train_loss"]
    return [
        (name, _cell(name, first.get(name)) if len(evaluations) > 1 else "", _cell(name, last.get(name)))
        for name in names
    ]


def _figures(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation; those of a table within it under both names."""
    figures: dict[str, float] = {}
    for name, value in line.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        for part, number in inner.items():
            if name not in _NO_FIGURES and is_number(number):
                figures[f"{name} {part}".strip()] = float(number)
    return figures


def _ordered(tables: Sequence[Mapping[str, float]]) -> list[str]:
    """The names of all figures, the known ones first."""
    names = {name: None for table in tables for name in table}
    return [*(name for name in _FIRST_NAMES if name in names), *(n for n in names if n not in _FIRST_NAMES)]


def _cells(names: Sequence[str], values: Mapping[str, float]) -> list[str]:
    return [_cell(name, values.get(name)) for name in names]


def _shown_places(steps: Sequence[int], best: int | None) -> list[int]:
    if len(steps) <= _MOST_ROWS:
        return list(range(len(steps)))
    even = {round(place * (len(steps) - 1) / (_MOST_ROWS - 2)) for place in range(_MOST_ROWS - 1)}
    return sorted(even | ({steps.index(best)} if best in steps else set()))


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return share(value) if name in SHARES else figure(value)


def _best_place(name: str, values: Sequence[float | None]) -> int | None:
    """Where the best value stands, if it is known which way is better and not all are the same."""
    known = [value for value in values if value is not None]
    if len(set(known)) < 2 or not (name in SHARES or "loss" in name or "perplexity" in name):
        return None
    is_highest_best = is_better(max(known), min(known), by=name)
    return values.index(max(known) if is_highest_best else min(known))
