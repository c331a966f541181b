"""metrics.jsonl holds every complete line, survives a cut one, and forgets what will be done again."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.base.errors import FinetoothError
from finetooth.training.metrics import MetricsLog

LINES: list[dict[str, Any]] = [
    {"step": 0, "dev_loss": 3.5},
    {"step": 1, "loss": 2.25},
    {"step": 2, "loss": 1 / 3},
    {"step": 2, "dev_loss": 1e-9},
    {"step": 3, "loss": 0.1},
]


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    for line in LINES:
        log.append(line)
    return log


def test_lines_are_read_as_they_were_written(log: MetricsLog):
    assert log.lines() == LINES
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == LINES


def test_a_line_is_in_the_file_before_append_returns(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for number, line in enumerate(LINES, start=1):
        log.append(line)
        assert len(log.path.read_text().splitlines()) == number


def test_a_log_without_a_file_is_empty(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.lines() == []
    log.forget_after(3)
    assert log.lines() == []


@given(cut=st.integers(0, 200))
def test_a_file_cut_anywhere_gives_the_lines_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int
):
    log = MetricsLog(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    for line in LINES:
        log.append(line)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:cut])
    assert log.lines() == LINES[: whole[:cut].count(b"\n")]


@pytest.mark.parametrize("step", range(5))
def test_later_steps_are_forgotten_with_their_evaluations(log: MetricsLog, step: int):
    log.forget_after(step)
    assert log.lines() == [line for line in LINES if line["step"] <= step]


def test_after_a_cut_line_the_log_goes_on(log: MetricsLog):
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    log.forget_after(3)
    log.append({"step": 4, "loss": 0.2})
    assert log.lines() == [*LINES, {"step": 4, "loss": 0.2}]


def test_a_broken_line_in_the_middle_is_not_passed_over(log: MetricsLog):
    """Negative control: only the last line can have been cut off; any other damage is told."""
    log.path.write_text(log.path.read_text().replace('{"step": 1,', "", 1))
    with pytest.raises(FinetoothError) as caught:
        log.lines()
    told = f"{log.path}:2: no line that a run writes; remove the line, or name another run"
    assert str(caught.value) == told
