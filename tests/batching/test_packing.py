"""Every document lands in exactly one row, rows fit, and ranks carry equal loads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.batching.packing import Layout, document_costs, forward_passes, lay_out

some_lengths = st.lists(st.integers(1, 64), min_size=0, max_size=40)
layouts = st.builds(
    Layout, packing=st.booleans(), row_tokens=st.integers(64, 300), rows_at_once=st.integers(1, 4)
)


@given(some_lengths, layouts, st.integers(1, 5))
def test_every_document_stands_in_exactly_one_row(lengths: list[int], layout: Layout, world_size: int):
    documents = np.arange(100, 100 + len(lengths))
    ranks = lay_out(documents, np.array(lengths, dtype=np.int64), layout=layout, world_size=world_size)
    laid_out = [document for rows in ranks for row in rows for document in row]
    assert sorted(laid_out) == documents.tolist()
    assert len(ranks) == world_size


@given(some_lengths, layouts, st.integers(1, 5))
def test_every_rank_runs_the_same_number_of_forward_passes(
    lengths: list[int], layout: Layout, world_size: int
):
    ranks = lay_out(
        np.arange(len(lengths)), np.array(lengths, dtype=np.int64), layout=layout, world_size=world_size
    )
    assert len({len(forward_passes(rows, layout.rows_at_once)) for rows in ranks}) == 1
    assert ranks[0], "a step without documents still has a (possibly empty) row"


@given(some_lengths, layouts, st.integers(1, 5))
def test_rows_fit_and_loads_are_bounded(lengths: list[int], layout: Layout, world_size: int):
    ranks = lay_out(
        np.arange(len(lengths)), np.array(lengths, dtype=np.int64), layout=layout, world_size=world_size
    )
    tokens = [sum(lengths[document] for document in row) for rows in ranks for row in rows]
    assert max(tokens) <= layout.row_tokens


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=60), st.integers(1, 8))
def test_costs_of_rows_are_bounded_where_there_is_room(lengths: list[int], world_size: int):
    """Graham's bound of 1969 for putting each document where there is least."""
    layout = Layout(packing=True, row_tokens=sum(lengths))
    ranks = lay_out(np.arange(len(lengths)), np.array(lengths), layout=layout, world_size=world_size)
    costs = document_costs(np.array(lengths))
    loads = [sum(costs[list(row)]) for rows in ranks for row in rows]
    assert len(loads) == world_size
    assert max(loads) <= costs.sum() / len(loads) + (1 - 1 / len(loads)) * costs.max() + 1e-9


@given(
    st.lists(st.integers(1, 40_000), min_size=0, max_size=60),
    st.builds(Layout, packing=st.booleans(), row_tokens=st.integers(40_000, 100_000)),
    st.integers(1, 8),
)
def test_every_rank_has_as_many_rows_and_at_most_the_mean_and_one_row(
    lengths: list[int], layout: Layout, world_size: int
):
    sizes = np.array(lengths, dtype=np.int64)
    ranks = lay_out(np.arange(len(lengths)), sizes, layout=layout, world_size=world_size)
    costs = document_costs(sizes)
    rows = [[int(costs[list(row)].sum()) for row in rows] for rows in ranks]
    loads = [sum(row_costs) for row_costs in rows]
    assert max(loads) <= sum(loads) / world_size + max(max(row_costs) for row_costs in rows)
    assert len({len(row_costs) for row_costs in rows}) == 1


@pytest.mark.parametrize("world_size", [2, 8, 64, 1024])
@pytest.mark.parametrize("packing", [True, False])
def test_no_rank_carries_more_than_the_mean_or_the_costliest_document(world_size: int, packing: bool):
    """Sizes as real records have them, 32 for each rank, some of them very long: to 2 %."""
    lengths = np.random.default_rng(world_size).lognormal(6, 1.2, 32 * world_size).astype(np.int64)
    lengths = lengths.clip(1, 32_768)
    layout = Layout(packing=packing, row_tokens=32_768)
    ranks = lay_out(np.arange(len(lengths)), lengths, layout=layout, world_size=world_size)
    costs = document_costs(lengths)
    loads = [sum(int(costs[list(row)].sum()) for row in rows) for rows in ranks]
    assert max(loads) <= max(np.mean(loads), costs.max()) * 1.02


def test_one_long_document_costs_more_than_as_many_tokens_in_short_ones():
    """Balanced by tokens, both ranks would have 32,000 of them, and one would work half as long again."""
    lengths = np.array([24_000, *[1000] * 40])
    first, second = lay_out(
        np.arange(41), lengths, layout=Layout(packing=True, row_tokens=64_000), world_size=2
    )
    tokens = [sum(lengths[list(row)].sum() for row in rows) for rows in (first, second)]
    assert tokens[0] < 27_000 < 37_000 < tokens[1]


@given(some_lengths, st.integers(64, 300))
def test_the_layout_does_not_depend_on_the_order_of_the_documents(lengths: list[int], row_tokens: int):
    layout = Layout(packing=True, row_tokens=row_tokens)
    documents, sizes = np.arange(len(lengths)), np.array(lengths, dtype=np.int64)
    backwards = lay_out(documents[::-1], sizes[::-1], layout=layout)
    assert lay_out(documents, sizes, layout=layout) == backwards


def test_without_packing_every_document_has_its_own_row():
    layout = Layout(packing=False, row_tokens=64)
    assert lay_out(np.array([4, 5, 6]), np.array([2, 9, 5]), layout=layout) == [[(5,), (6,), (4,)]]


def test_packed_rows_are_nearly_full():
    lengths = np.random.default_rng(0).lognormal(5.3, 0.9, 2000).astype(np.int64).clip(1, 4096)
    (rows,) = lay_out(np.arange(2000), lengths, layout=Layout(packing=True, row_tokens=8192))
    assert lengths.sum() / (len(rows) * max(lengths[list(row)].sum() for row in rows)) > 0.97
