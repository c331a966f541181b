"""The schedule is pure: every document once per epoch, any step at once, totals known beforehand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize("first", range(1, 11))
def test_seeking_gives_the_remaining_steps(first: int):
    schedule, fresh = make_schedule(), make_schedule()
    whole = [step.documents.tolist() for step in schedule.steps()]
    assert [step.documents.tolist() for step in fresh.steps(first)] == whole[first - 1 :]


def test_totals_are_sums_over_the_step():
    schedule = make_schedule()
    for step in schedule.steps():
        assert step.num_tokens == schedule.lengths[step.documents].sum()
        assert step.num_targets == schedule.num_targets[step.documents].sum()
        assert step.total_loss_weight == schedule.loss_weight_totals[step.documents].sum()


@pytest.mark.parametrize("settings", [{}, {"global_batch_tokens": 60}, {"max_steps": 27}])
def test_totals_of_the_first_steps_are_the_sums_of_each(settings: dict[str, object]):
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
def test_the_fingerprint_tells_schedules_apart(change: dict[str, object]):
    assert make_schedule().fingerprint == make_schedule().fingerprint
    assert make_schedule(**change).fingerprint != make_schedule().fingerprint
