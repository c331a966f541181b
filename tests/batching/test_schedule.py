"""The schedule is pure: every document once per epoch, any step at once, totals known beforehand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.batching import order as order_module
from finetooth.batching.packing import Layout
from finetooth.batching.schedule import Schedule


def make_schedule(num_documents: int = 23, **settings: object) -> Schedule:
    lengths = np.random.default_rng(num_documents).integers(2, 50, num_documents)
    num_targets = lengths // 2
    values = {"seed": 7, "num_epochs": 2, "global_batch_size": 5, **settings}
    return Schedule(lengths, num_targets * 0.5, num_targets, **values)  # type: ignore[arg-type]


@given(st.integers(1, 80), st.integers(1, 100), st.integers(1, 3), st.integers(0, 99))
def test_an_epoch_visits_every_document_once(num_documents: int, batch: int, num_epochs: int, seed: int):
    schedule = make_schedule(num_documents, global_batch_size=batch, num_epochs=num_epochs, seed=seed)
    steps = list(schedule.steps())
    assert len(steps) == num_epochs * -(-num_documents // batch)
    for epoch in range(num_epochs):
        visited = np.concatenate([step.documents for step in steps if step.epoch == epoch])
        assert sorted(visited.tolist()) == list(range(num_documents))


@given(st.integers(1, 80), st.integers(1, 2000))
def test_token_budgets_visit_every_document_once(num_documents: int, tokens: int):
    schedule = make_schedule(num_documents, global_batch_tokens=tokens, num_epochs=1)
    visited = np.concatenate([step.documents for step in schedule.steps()])
    assert sorted(visited.tolist()) == list(range(num_documents))


THREE_EPOCHS: dict[str, dict[str, Any]] = {
    "documents": {},
    "tokens": {"global_batch_tokens": 60},
    "part of an epoch": {"num_epochs": 2.6},
}


def account(schedule: Schedule, first: int = 1) -> list[tuple[object, ...]]:
    """All that the steps from `first` on say."""
    return [
        (step.number, step.epoch, *step.documents.tolist(), step.total_loss_weight, step.num_tokens)
        for step in schedule.steps(first)
    ]


@pytest.mark.parametrize("settings", THREE_EPOCHS.values(), ids=THREE_EPOCHS)
def test_from_every_step_of_three_epochs_the_remaining_schedule_is_the_same(settings: dict[str, Any]):
    """As after a resume: the schedule is made anew, and no step before was asked for."""
    settings = {"num_epochs": 3, **settings}
    whole = account(make_schedule(num_documents=97, **settings))
    for first in range(1, len(whole) + 1):
        order_module._sorted_order.cache_clear()
        assert account(make_schedule(num_documents=97, **settings), first) == whole[first - 1 :]
    assert len({epoch for _, epoch, *_ in whole}) == 3


def test_a_schedule_that_goes_on_elsewhere_would_be_noticed():
    """Negative control: another seed, and a start that is off by one."""
    whole = account(make_schedule(num_documents=97, num_epochs=3))
    for first in range(2, len(whole)):
        assert account(make_schedule(num_documents=97, num_epochs=3, seed=8), first) != whole[first - 1 :]
        assert account(make_schedule(num_documents=97, num_epochs=3), first + 1) != whole[first - 1 :]


@given(st.integers(1, 80), st.integers(1, 30), st.one_of(st.none(), st.integers(20, 400)), st.integers(0, 2))
def test_steps_are_found_by_their_documents(num_documents: int, batch: int, tokens: int | None, epoch: int):
    schedule = make_schedule(num_documents, global_batch_size=batch, global_batch_tokens=tokens, num_epochs=3)
    found = schedule.steps_of(np.arange(num_documents), epoch=epoch)
    for document, number in enumerate(found.tolist()):
        step = schedule.step(number)
        assert step.epoch == epoch
        assert document in step.documents


def test_totals_are_sums_over_the_step():
    schedule = make_schedule()
    for step in schedule.steps():
        assert step.num_tokens == schedule.lengths[step.documents].sum()
        assert step.num_targets == schedule.num_targets[step.documents].sum()
        assert step.total_loss_weight == schedule.loss_weight_totals[step.documents].sum()


@pytest.mark.parametrize("settings", [{}, {"global_batch_tokens": 60}, {"max_steps": 27}])
def test_totals_of_the_first_steps_are_the_sums_of_each(settings: dict[str, Any]):
    schedule = make_schedule(**settings)
    num_tokens = num_targets = 0
    assert schedule.totals(0) == (0, 0)
    for step in schedule.steps():
        num_tokens, num_targets = num_tokens + step.num_tokens, num_targets + step.num_targets
        assert schedule.totals(step.number) == (num_tokens, num_targets)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("packing", [True, False])
def test_ranks_share_a_step_without_overlap(world_size: int, packing: bool):
    schedule, layout = make_schedule(), Layout(packing=packing, row_tokens=64)
    step = schedule.step(3)
    ranks = [
        schedule.rows(step, layout=layout, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    documents = [document for rows in ranks for row in rows for document in row]
    assert sorted(documents) == sorted(step.documents.tolist())


def test_max_steps_takes_the_place_of_epochs():
    schedule = make_schedule(max_steps=13)
    assert [step.number for step in schedule.steps()] == list(range(1, 14))
    assert schedule.step(13).epoch == 2


def test_part_of_an_epoch_is_rounded_up_to_a_step():
    assert make_schedule(num_epochs=0.5).num_steps == 3


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"global_batch_size": 6}, {"global_batch_tokens": 50}, {"source_fingerprint": "other"}],
)
def test_the_fingerprint_tells_schedules_apart(change: dict[str, Any]):
    assert make_schedule().fingerprint == make_schedule().fingerprint
    assert make_schedule(**change).fingerprint != make_schedule().fingerprint
