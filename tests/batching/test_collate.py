"""Rows become a batch in which every token, position and target stands where a naive loop puts it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.documents import Documents

from finetooth.batching.collate import Batch, collate
from finetooth.data.records import Document, Origin


@st.composite
def documents_in_rows(draw: st.DrawFn) -> tuple[Documents, list[tuple[int, ...]]]:
    """Documents with any loss weights behind their first token, dealt to rows of which some are empty."""
    documents: list[Document] = []
    for number in range(draw(st.integers(1, 6))):
        token_ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=8))
        weights = draw(
            st.lists(
                st.sampled_from([0.0, 1.0, 0.5]), min_size=len(token_ids) - 1, max_size=len(token_ids) - 1
            )
        )
        documents.append(
            Document(
                np.array(token_ids, dtype=np.int32),
                np.array([0.0, *weights], dtype=np.float32),
                1,
                Origin("drawn", number),
            )
        )
    order = draw(st.permutations(range(len(documents))))
    num_rows = draw(st.integers(1, 4))
    places = [draw(st.integers(0, num_rows - 1)) for _ in order]
    rows = [
        tuple(n for n, place in zip(order, places, strict=True) if place == row) for row in range(num_rows)
    ]
    return Documents(documents), rows


def naively(documents: Documents, rows: list[tuple[int, ...]], row_multiple: int) -> dict[str, Any]:
    """The same batch, one token at a time."""
    longest = max(sum(len(documents.document(number).token_ids) for number in row) for row in rows)
    num_tokens = row_multiple
    while num_tokens < longest:
        num_tokens += row_multiple
    expected: dict[str, Any] = {
        name: [] for name in ("ids", "positions", "lengths", "sources", "targets", "weights")
    }
    for row_number, row in enumerate(rows):
        ids: list[int] = []
        positions: list[int] = []
        for number in row:
            document = documents.document(number)
            for position, token in enumerate(document.token_ids.tolist()):
                weight = float(document.loss_weights[position])
                if weight:
                    expected["sources"].append(row_number * num_tokens + len(ids) - 1)
                    expected["targets"].append(token)
                    expected["weights"].append(weight)
                ids.append(token)
                positions.append(position)
            expected["lengths"].append(len(document.token_ids))
        if len(ids) < num_tokens:
            expected["lengths"].append(num_tokens - len(ids))
        padding = [0] * (num_tokens - len(ids))
        expected["ids"].append(ids + padding)
        expected["positions"].append(positions + padding)
    return expected


def as_lists(batch: Batch) -> dict[str, Any]:
    return {
        "ids": batch.token_ids_BT.tolist(),
        "positions": batch.positions_BT.tolist(),
        "lengths": list(batch.layout.lengths),
        "sources": batch.target_sources_N.tolist(),
        "targets": batch.targets_N.tolist(),
        "weights": batch.loss_weights_N.tolist(),
    }


@given(documents_in_rows(), st.integers(1, 9))
def test_a_batch_is_what_a_naive_loop_gives(
    drawn: tuple[Documents, list[tuple[int, ...]]], row_multiple: int
):
    documents, rows = drawn
    batch = collate(rows, documents, row_multiple=row_multiple)
    assert as_lists(batch) == naively(documents, rows, row_multiple)
    assert batch.documents == tuple(number for row in rows for number in row)
    assert batch.layout.offsets_S1.tolist() == [0, *np.cumsum(batch.layout.lengths)]
    assert batch.layout.offsets_S1[-1] == batch.token_ids_BT.numel()
    assert batch.layout.longest == max(batch.layout.lengths)


@given(documents_in_rows(), st.integers(1, 9))
def test_every_target_stands_in_the_batch_once_with_its_loss_weight(
    drawn: tuple[Documents, list[tuple[int, ...]]], row_multiple: int
):
    documents, rows = drawn
    batch = collate(rows, documents, row_multiple=row_multiple)
    assert len(batch.targets_N) == documents.num_targets.sum()
    assert float(batch.loss_weights_N.sum()) == documents.loss_weight_totals.sum()
    assert len(set(batch.target_sources_N.tolist())) == len(batch.target_sources_N)
    flat = batch.token_ids_BT.flatten()
    assert flat[batch.target_sources_N + 1].tolist() == batch.targets_N.tolist()
    ends = set((batch.layout.offsets_S1[1:] - 1).tolist())
    assert not ends & set(batch.target_sources_N.tolist()), "a target is predicted from another document"


def test_the_example_of_the_docstring():
    first = Document(
        np.array([7, 3, 9, 4, 2], dtype=np.int32),
        np.array([0, 0, 0, 1, 1], dtype=np.float32),
        3,
        Origin("a", 1),
    )
    second = Document(
        np.array([7, 5, 2], dtype=np.int32), np.array([0, 0, 1], dtype=np.float32), 2, Origin("a", 2)
    )
    batch = collate([(0, 1)], Documents([first, second]))
    assert as_lists(batch) == {
        "ids": [[7, 3, 9, 4, 2, 7, 5, 2]],
        "positions": [[0, 1, 2, 3, 4, 0, 1, 2]],
        "lengths": [5, 3],
        "sources": [2, 3, 6],
        "targets": [4, 2, 2],
        "weights": [1, 1, 1],
    }


def test_rows_that_are_all_empty_have_one_token_of_padding():
    batch = collate([(), ()], Documents([]), row_multiple=1)
    assert as_lists(batch) == {
        "ids": [[0], [0]],
        "positions": [[0], [0]],
        "lengths": [1, 1],
        "sources": [],
        "targets": [],
        "weights": [],
    }


def test_a_first_token_cannot_be_a_target():
    """Negative control: its source would lie in the document before it."""
    wrong = Document(np.array([1, 2], dtype=np.int32), np.ones(2, dtype=np.float32), 0, Origin("a", 1))
    with pytest.raises(AssertionError, match="the first token of a document cannot be predicted"):
        collate([(0,)], Documents([wrong]))
