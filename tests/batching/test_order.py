"""The order is a permutation, stable for ever, and steps are cut evenly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.batching import order as order_module
from finetooth.batching.order import epoch_order, even_boundary, places_in_order, token_boundaries


@given(st.integers(0, 500), st.integers(0, 2**32 - 1), st.integers(0, 1 << 41))
def test_every_document_occurs_once_in_an_epoch(num_documents: int, seed: int, epoch: int):
    order = epoch_order(num_documents, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(num_documents))


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.integers(0, 1 << 41), st.data())
def test_very_many_documents_have_an_order_that_is_computed_place_by_place(
    num_documents: int, seed: int, epoch: int, data: st.DataObject
):
    start = data.draw(st.integers(0, num_documents))
    stop = data.draw(st.integers(start, num_documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "LARGEST_SORTED", 0)
        patch.setattr(order_module, "_PLACES_AT_ONCE", 97)
        order = epoch_order(num_documents, seed=seed, epoch=epoch)
        part = epoch_order(num_documents, seed=seed, epoch=epoch, start=start, stop=stop)
    assert sorted(order.tolist()) == list(range(num_documents))
    assert part.tolist() == order[start:stop].tolist()


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.integers(0, 1 << 41), st.booleans())
def test_places_lead_back_from_documents(num_documents: int, seed: int, epoch: int, is_sorted: bool):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "LARGEST_SORTED", num_documents if is_sorted else 0)
        order = epoch_order(num_documents, seed=seed, epoch=epoch)
        places = places_in_order(order[::2], num_documents, seed=seed, epoch=epoch)
    assert places.tolist() == list(range(0, num_documents, 2))


def test_a_hundred_million_documents_cost_no_more_than_those_that_are_asked_for():
    """And neighbours in the order are as far apart as chance puts them: on average a third of all."""
    num_documents = 100_000_000
    drawn = epoch_order(num_documents, seed=42, epoch=0, start=70_000_000, stop=70_010_000)
    assert drawn[:3].tolist() == [47166994, 79118080, 70146788]
    assert len(set(drawn.tolist())) == 10_000
    assert drawn.min() >= 0
    assert drawn.max() < num_documents
    assert abs(np.abs(np.diff(drawn)).mean() / num_documents - 1 / 3) < 0.01
    counts = np.bincount(drawn // 1_000_000, minlength=100)
    assert ((counts - 100) ** 2 / 100).sum() < 160  # 99 degrees of freedom: p ≈ 1e-4


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
    places = range(num_steps + 1)
    sizes = np.diff([even_boundary(p, num_documents=num_documents, num_steps=num_steps) for p in places])
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
