"""The time of a run follows from a few of its steps; it is evaluated and saved as often as was counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_run import write_run
from typer.testing import CliRunner

from finetooth.batching.packing import Layout
from finetooth.batching.row_lengths import num_places
from finetooth.batching.schedule import Schedule
from finetooth.cli import app
from finetooth.config.load import load_config
from finetooth.model.flops import flops_per_token
from finetooth.model.shape import ModelShape
from finetooth.training.duration import (
    Rough,
    WeighedSteps,
    evaluated_steps,
    rough_duration,
    saved_steps,
    weigh_steps,
)

SHAPE = ModelShape(
    num_parameters=0, is_fresh=True, positions=None, vocabulary=64, hidden=8, layers=2, query_width=8,
    key_width=4, feed_forward=16,
)  # fmt: skip


def steps_costing(costs: np.ndarray) -> WeighedSteps:
    return WeighedSteps(np.arange(1, len(costs) + 1), costs)


@given(
    st.lists(st.floats(1, 1000), min_size=4, max_size=80),
    st.floats(0, 10),
    st.floats(1e-3, 10),
    st.integers(2, 8),
)
def test_any_few_steps_tell_the_mean_where_time_grows_with_cost(
    costs: list[float], always: float, rate: float, most: int
):
    steps = steps_costing(np.array(costs))
    places = steps.spread(most)
    seconds = always + rate * steps.costs
    told = steps.mean_seconds(places, seconds[places].tolist())
    if np.ptp(steps.costs[places]) > 1e-6 * steps.costs.max():
        assert told == pytest.approx(seconds.mean(), rel=1e-6)


def test_the_mean_of_the_first_steps_alone_would_be_wrong():
    steps = steps_costing(np.linspace(1, 100, 100))
    seconds = 2 + 3 * steps.costs
    first = list(range(5))
    assert steps.mean_seconds(first, seconds[first].tolist()) == pytest.approx(seconds.mean())
    assert seconds[first].mean() < 0.1 * seconds.mean()


def test_noise_cannot_make_a_step_cost_less_than_nothing():
    steps = steps_costing(np.array([1.0, 2.0, 3.0, 60.0]))
    falling, steep = [3.0, 2.0, 1.0], [1.0, 2.0, 60.0]
    assert steps.mean_seconds([0, 1, 2], falling) == 2.0
    assert steps.mean_seconds([0, 1, 2], steep) == pytest.approx(21 / 2 * steps.costs.mean())


@given(st.integers(1, 300), st.integers(1, 300))
def test_steps_are_spread_over_the_costs_each_once(num_steps: int, most: int):
    steps = steps_costing(np.random.default_rng(num_steps).permutation(num_steps).astype(float))
    places = steps.spread(most)
    assert len(set(places)) == len(places) == min(most, num_steps)
    shares = np.sort(steps.costs[places[:7]]) / num_steps
    if num_steps >= 64 and len(shares) == 7:
        assert np.abs(shares - np.arange(1, 8) / 8).max() < 0.02


def test_a_step_costs_what_its_documents_and_their_padding_do():
    lengths = np.array([4, 8, 2, 6])
    schedule = Schedule(lengths, lengths / 2, lengths // 2, seed=0, global_batch_size=2)
    packed, padded = (
        weigh_steps(schedule, layout, SHAPE)
        for layout in (Layout(True, row_tokens=16), Layout(False, row_tokens=1, rows_at_once=2))
    )
    assert packed.numbers.tolist() == padded.numbers.tolist() == [1, 2]
    for number, cost, cost_padded in zip(packed.numbers, packed.costs, padded.costs, strict=True):
        own = lengths[schedule.step(int(number)).documents]
        assert cost == pytest.approx(own.sum() * flops_per_token(SHAPE, own, 0.5, lora=False))
        assert cost_padded == pytest.approx(cost * 2 * own.max() / own.sum())


def test_padding_that_a_gpu_adds_counts():
    layout, lengths = Layout(True, row_tokens=16), np.array([3, 4, 5])
    assert num_places([(0, 1), (2,)], lengths, layout, []) == 12
    assert num_places([(0, 1), (2,)], lengths, layout, [8, 16]) == 16


def test_a_run_is_evaluated_and_saved_when_it_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Learning from scratch, every evaluation of so short a run is the best so far."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    settings = ["evaluation.every=4", "checkpoints.every=3", "keep=99", "learning_rate=1e-3"]
    done = CliRunner().invoke(app, ["train", "run.yaml", *settings])
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    evaluated = {line["step"] for line in lines if "train_loss" in line}
    saved = {int(path.name.removeprefix("step-")) for path in Path("run/checkpoints").glob("step-*")}
    config = load_config("run.yaml", settings)
    assert evaluated == evaluated_steps(config, 10) == {0, 4, 8, 10}
    assert saved == saved_steps(config, 10, has_dev=True) == {3, 4, 6, 8, 9, 10}
    never = load_config("run.yaml", ["evaluation.every=0", "checkpoints.every=0"])
    assert (evaluated_steps(never, 10), saved_steps(never, 10, has_dev=False)) == ({0, 10}, {10})


def test_roughly_a_run_takes_what_its_operations_take(tmp_path: Path):
    lengths = np.full(8, 10)
    schedule = Schedule(lengths, lengths / 2, lengths // 2, seed=0, global_batch_size=4, max_steps=6)
    config = load_config(write_run(tmp_path), ["evaluation.every=0"])
    steps = weigh_steps(schedule, Layout(True, row_tokens=64), SHAPE)
    trained = 6 * 40 * flops_per_token(SHAPE, lengths, 0.5, lora=False)
    told = rough_duration(steps, config, schedule, evaluated_tokens=0, rate=1e6)
    assert told == Rough(pytest.approx(1.3 * trained / 1e6), pytest.approx(4 * trained / 1e6), 1e6)
    evaluated = rough_duration(steps, config, schedule, evaluated_tokens=120, rate=1e6)
    assert evaluated.least == pytest.approx(told.least * 4 / 3), "twice 120 tokens, at a third of their cost"
