"""A course is read as it was written, and thinned without losing its highest and lowest values."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base.errors import FinetoothError
from finetooth.reporting.course import Course, read_course, thinned
from finetooth.reporting.plots import WIDTH, figure_of


def write(path: Path, lines: list[dict[str, Any]], *, end: str = "") -> Course:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return read_course(path)


def updates(losses: list[float], *, every: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "step": every * (place + 1),
            "loss": loss,
            "num_targets": place + 1,
            "num_tokens": 10,
            "seconds": 0.5,
        }
        for place, loss in enumerate(losses)
    ]


def test_updates_evaluations_and_notes_are_told_apart(tmp_path: Path):
    spike = {"step": 2, "loss": 9.0, "spike": {"usual_loss": 2.0, "documents": []}}
    evaluation = {"step": 2, "train_loss": 1.5, "dev_loss": 2.5}
    skipped = {"step": 3, "skipped": ["step 3: a loss is not finite"]}
    course = write(tmp_path / "a", [*updates([3.0]), spike, evaluation, skipped], end='{"step": 4, "lo')
    assert course.steps.tolist() == [1, 2]
    assert course.columns["loss"].tolist() == [3.0, 9.0]
    assert course.columns["tokens_per_second"].tolist()[0] == 20.0
    assert math.isnan(course.columns["tokens_per_second"][1])
    assert course.evaluations == [evaluation]
    assert course.notes == [spike, skipped]


def test_tokens_are_counted_through_steps_that_are_not_logged(tmp_path: Path):
    course = write(tmp_path / "a", updates([3.0, 2.0, 1.0], every=4))
    assert not course.is_complete
    assert course.tokens.tolist() == [40.0, 80.0, 120.0]
    assert course.tokens_through(np.array([0, 2, 4, 12])).tolist() == [0.0, 20.0, 40.0, 120.0]
    assert write(tmp_path / "a", updates([3.0, 2.0])).is_complete


@given(
    losses=st.lists(st.floats(0.01, 100), min_size=1, max_size=200),
    most=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_the_extremes_and_the_mean_over_targets(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], most: int
):
    course = write(tmp_path_factory.getbasetemp() / "thinned", updates(losses))
    points = thinned(course, most=most)
    assert len(points.last) == min(most, len(losses))
    assert points.first[0] == 1
    assert points.last[-1] == len(losses)
    assert (points.first[1:] == points.last[:-1] + 1).all()
    assert points.low["loss"].min() == min(losses)
    assert points.high["loss"].max() == max(losses)
    sizes = [sum(range(first, last + 1)) for first, last in zip(points.first, points.last, strict=True)]
    whole = sum(loss * (place + 1) for place, loss in enumerate(losses)) / sum(range(1, len(losses) + 1))
    assert float(points.mean["loss"] @ sizes / sum(sizes)) == pytest.approx(whole)
    assert np.isnan(points.mean["grad_norm"]).all()


def test_the_smoothed_loss_lies_on_what_does_not_change(tmp_path: Path):
    points = thinned(write(tmp_path / "a", updates([2.0] * 50)), most=50)
    assert points.smooth is not None
    assert points.smooth == pytest.approx(np.full(50, 2.0))
    assert thinned(write(tmp_path / "a", updates([2.0] * 19)), most=50).smooth is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", ""),
        ("[]", ": Expected `object`, got `array`"),
        ('{"loss": 1.0}', ": Object missing required field `step`"),
        ('{"step": "1"}', ": Expected `int`, got `str` - at `$.step`"),
    ],
)
def test_a_line_that_no_run_writes_is_told(tmp_path: Path, line: str, reason: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 1.0}}\n{line}\n')
    with pytest.raises(FinetoothError) as caught:
        read_course(path)
    fact = f"no line that a run writes{reason}"
    assert str(caught.value) == f"{path}:2: {fact}; remove the line, or name another run"


def test_nothing_that_is_drawn_leaves_its_place(tmp_path: Path):
    losses = [2.0, math.nan, math.inf, 3.0, 500.0, 1.0, -1.0]
    one = write(tmp_path / "a", updates(losses))
    other = write(tmp_path / "b", [*updates([5.0] * 500), {"step": 500, "train_loss": 1, "dev_loss": 2}])
    for courses in ([one], [other], [one, other]):
        for axis in ("step", "tokens"):
            figure = figure_of(courses, axis)
            assert figure is not None
            assert all(0 <= zone.start <= zone.across <= 100.01 for zone in figure.zones)
            assert sum(zone.width for zone in figure.zones) == pytest.approx(100, abs=0.5)
            for panel in figure.panels:
                assert all(0 <= tick.place <= panel.height for tick in panel.ticks)
                assert len(panel.last) == len(courses)
                corners = [
                    c for line in panel.lines for c in line.path.replace("M", "L").strip("LZ").split("L")
                ]
                assert all(0 <= float(corner.split()[0]) <= WIDTH for corner in corners if corner)


def test_a_run_without_updates_has_no_figure(tmp_path: Path):
    course = write(tmp_path / "a", [{"step": 0, "train_loss": 2.0}])
    assert figure_of([course], "step") is None
    assert figure_of([read_course(tmp_path / "none")], "step") is None
