"""Every document lands in exactly one row, rows fit, and ranks carry equal loads."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetooth.batching.packing import Layout, forward_passes, lay_out

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
    loads = [sum(lengths[document] for document in row) for rows in ranks for row in rows]
    assert max(loads) <= layout.row_tokens
    if layout.packing and lengths:
        # Graham's bound of 1969 for putting each document where there is least
        assert max(loads) <= sum(lengths) / len(loads) + (1 - 1 / len(loads)) * max(lengths) + 1e-9


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
