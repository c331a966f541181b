"""Records that changed most are named first, either way; answers that turned are those right once."""

from typing import Any

import numpy as np
import pytest
from tests.documents import random_documents

from finetooth.evaluation.document_losses import DocumentLosses
from finetooth.evaluation.exact_match import Answered
from finetooth.evaluation.record_changes import changed_records, turned_answers

DOCUMENTS = random_documents(5)


def losses(*means: float) -> DocumentLosses:
    """Those documents with these mean losses."""
    return DocumentLosses(DOCUMENTS, np.arange(5), np.array(means) * DOCUMENTS.loss_weight_totals)


def lines(records: list[Any]) -> list[int]:
    return [int(each.origin.split(":")[1]) for each in records]


def test_the_most_changed_records_come_first():
    changes = changed_records(losses(1, 2, 3, 4, 5), losses(1.5, 1, 3, 7, 4.5), most=9)
    assert (changes.num_records, changes.num_better, changes.num_worse) == (5, 2, 2)
    assert (lines(changes.better), lines(changes.worse)) == ([2, 5], [4, 1])
    assert [(each.first, each.second) for each in changes.worse] == [
        pytest.approx((4, 7)),
        pytest.approx((1, 1.5)),
    ]
    totals = DOCUMENTS.loss_weight_totals
    assert changes.first_loss == pytest.approx(float(np.array([1, 2, 3, 4, 5]) @ totals / totals.sum()))


def test_no_more_are_named_than_asked_for():
    changes = changed_records(losses(1, 1, 1, 1, 1), losses(0.9, 0.8, 0.7, 0.6, 0.5), most=2)
    assert (changes.num_better, lines(changes.better), changes.worse) == (5, [5, 4], [])


def test_what_rounding_may_have_done_is_no_change():
    changes = changed_records(losses(1, 1, 1, 1, 1), losses(1 + 1e-8, 1 - 1e-8, 1, 1, 1 + 1e-5), most=9)
    assert (changes.num_better, changes.num_worse, lines(changes.worse)) == (0, 1, [5])


def answered(*are_right: bool) -> dict[int, Answered]:
    return {
        number: Answered(f"dev.jsonl:{number}", "", "", "", True, is_right, None, 0, False)
        for number, is_right in enumerate(are_right)
    }


def test_turned_answers_are_right_under_one_of_both():
    turned = turned_answers(
        answered(True, True, False, False, False), answered(True, False, True, False, False)
    )
    assert (turned.right, turned.wrong) == (["dev.jsonl:2"], ["dev.jsonl:1"])
    assert (turned.num_right_twice, turned.num_wrong_twice) == (1, 2)
