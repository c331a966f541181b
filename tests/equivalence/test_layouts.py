"""Micro-batches, accumulation and packing choose a layout; losses and gradients stay the same."""

import pytest
import torch
from tests.equivalence.course import Case, assert_same, follow

from finetooth.batching.packing import Layout

# Micro-batch × accumulation of eight documents with very unequal numbers of targets.
PADDED = {rows: Layout(packing=False, row_tokens=64, rows_at_once=rows) for rows in (8, 4, 2, 1)}
PACKED = [
    Layout(packing=True, row_tokens=24),
    Layout(packing=True, row_tokens=64, rows_at_once=2),
    Layout(packing=True, row_tokens=400),
]


@pytest.mark.parametrize("layout", [*PADDED.values(), *PACKED], ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_every_split_of_a_step_gives_the_same_loss_and_gradient(layout: Layout, wide: bool):
    expected = follow(Case(PADDED[8], wide=wide))
    assert_same([follow(Case(layout, wide=wide))], expected, wide=wide)


@pytest.mark.parametrize("layout", [PADDED[1], PACKED[1]], ids=str)
def test_fifty_steps_have_the_same_losses(layout: Layout):
    expected = follow(Case(PADDED[8], num_steps=50))
    assert_same([follow(Case(layout, num_steps=50))], expected)
    assert expected.losses[-1] < expected.losses[0] - 0.5


@pytest.mark.parametrize("wide", [False, True])
def test_a_mean_of_means_fails_the_same_test(wide: bool):
    """Negative control."""
    wrong = follow(Case(PADDED[2], wide=wide, mean_of_means=True))
    with pytest.raises(AssertionError):
        assert_same([wrong], follow(Case(PADDED[8], wide=wide)), wide=wide)


@pytest.mark.parametrize("layout", [PADDED[1], PADDED[4], PACKED[0]], ids=str)
def test_rows_without_targets_change_nothing(layout: Layout):
    """In (1, 8) some forward passes have no target at all."""
    expected = follow(Case(PADDED[8], num_steps=9, targetless=(0, 5, 6, 11, 20)))
    assert_same([follow(Case(layout, num_steps=9, targetless=(0, 5, 6, 11, 20)))], expected)


@pytest.mark.parametrize("layout", [PADDED[1], PACKED[1], PACKED[2]], ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_dropout_does_not_depend_on_the_layout(layout: Layout, wide: bool):
    expected = follow(Case(PADDED[8], num_steps=5, dropout=0.2, wide=wide))
    assert_same([follow(Case(layout, num_steps=5, dropout=0.2, wide=wide))], expected, wide=wide)
    with pytest.raises(AssertionError):  # negative control: it does drop something
        assert_same([follow(Case(layout, num_steps=5, wide=wide))], expected, wide=wide)


def test_a_step_without_targets_changes_nothing():
    """Not even through weight decay or the optimiser's running means."""
    nothing = tuple(range(24))
    before, after = (
        follow(Case(PADDED[2], num_steps=0)),
        follow(Case(PADDED[2], num_steps=2, targetless=nothing)),
    )
    assert after.losses == [0.0, 0.0]
    assert all(torch.equal(after.parameters[name], tensor) for name, tensor in before.parameters.items())
