"""The order is a permutation, stable for ever, and steps are cut evenly."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetooth.batching.order import epoch_order, even_boundaries, token_boundaries


@given(st.integers(0, 500), st.integers(0, 2**32 - 1), st.integers(0, 1 << 41))
def test_every_document_occurs_once_in_an_epoch(num_documents: int, seed: int, epoch: int):
    order = epoch_order(num_documents, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(num_documents))


def test_the_order_never_changes_between_versions():
    assert epoch_order(10, seed=42, epoch=0).tolist() == [6, 2, 5, 7, 0, 9, 4, 3, 8, 1]


def test_seed_and_epoch_change_the_order():
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_first_places_are_spread_over_all_documents():
    """Over many epochs every document comes first about equally often (χ², far beyond chance fails)."""
    counts = np.bincount([epoch_order(20, seed=1, epoch=epoch)[0] for epoch in range(2000)], minlength=20)
    chi_squared = ((counts - 100) ** 2 / 100).sum()
    assert chi_squared < 50  # 19 degrees of freedom: p ≈ 1e-4


@given(st.integers(1, 400), st.data())
def test_step_sizes_differ_by_at_most_one(num_documents: int, data: st.DataObject):
    num_steps = data.draw(st.integers(1, num_documents))
    sizes = np.diff(even_boundaries(num_documents, num_steps))
    assert sizes.sum() == num_documents
    assert sizes.max() - sizes.min() <= 1


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.data())
def test_token_steps_are_never_empty_and_near_the_mean(lengths: list[int], data: st.DataObject):
    num_steps = data.draw(st.integers(1, len(lengths)))
    boundaries = token_boundaries(np.array(lengths), num_steps)
    assert boundaries[0] == 0
    assert boundaries[-1] == len(lengths)
    assert (np.diff(boundaries) >= 1).all()


def test_token_steps_hold_about_equally_many_tokens():
    lengths = np.random.default_rng(0).integers(10, 300, 2000)
    boundaries = token_boundaries(lengths, 50)
    tokens = np.add.reduceat(lengths, boundaries[:-1])
    assert abs(tokens - lengths.sum() / 50).max() <= 300
