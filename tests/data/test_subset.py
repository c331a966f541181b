"""A subset is a document source with the numbers it was given, in that order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.documents import random_documents

from finetooth.data.subset import Subset

WHOLE = random_documents(9)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_a_subset_tells_of_its_documents_what_the_whole_does(numbers: list[int]):
    subset = Subset(WHOLE, numbers)
    for place, number in enumerate(numbers):
        document = WHOLE.document(number)
        assert subset.document(place) is document
        assert subset.lengths[place] == len(document.token_ids)
        assert subset.num_targets[place] == document.num_targets
        assert subset.loss_weight_totals[place] == document.loss_weights.sum()
    assert len(subset.lengths) == len(subset.num_targets) == len(subset.loss_weight_totals) == len(numbers)


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=5), st.lists(st.integers(0, 8), min_size=1, max_size=5)
)
def test_fingerprints_tell_subsets_apart(first: list[int], second: list[int]):
    prints = Subset(WHOLE, first).fingerprint, Subset(WHOLE, np.array(second)).fingerprint
    assert (prints[0] == prints[1]) == (first == second)


def test_the_fingerprint_depends_on_the_source():
    assert Subset(random_documents(9, seed=1), [0]).fingerprint != Subset(WHOLE, [0]).fingerprint
