"""The loss of each document, many at a time, is its own; the records with the highest are named."""

import numpy as np
import pytest
import torch
from tests.documents import Documents, random_documents, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import NonFiniteError
from finetooth.batching.packing import Layout
from finetooth.data.records import Document, Origin
from finetooth.evaluation.dev_loss import measure_loss
from finetooth.evaluation.document_losses import DocumentLosses, highest_losses, measure_documents
from finetooth.model.policy import PolicyModel

CPU = DeviceManager("cpu", "fp32")
ALONE = Layout(packing=False, row_tokens=64)
LAYOUTS = [
    Layout(packing=False, row_tokens=64, rows_at_once=5),
    Layout(packing=True, row_tokens=30, rows_at_once=2),
    Layout(packing=True, row_tokens=500),
]


def loss_alone(policy: PolicyModel, documents: Documents, number: int) -> float:
    return measure_loss(policy, documents, numbers=[number], layout=ALONE, devices=CPU).loss


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_document_has_the_loss_it_has_alone(layout: Layout):
    """One document has loss weights of a half, which a mean by loss weights does not notice."""
    policy, documents = small_policy(), random_documents(9)
    losses = measure_documents(policy, documents, numbers=range(9), layout=layout, devices=CPU)
    found = [losses.over([number]).loss for number in range(9)]
    assert found == pytest.approx([loss_alone(policy, documents, number) for number in range(9)], rel=1e-5)
    assert len({round(loss, 4) for loss in found}) == 9


@pytest.mark.parametrize("numbers", [[6, 1, 4], [6, 1, 6, 6]], ids=str)
def test_together_they_have_the_loss_that_training_measures(numbers: list[int]):
    policy, documents = small_policy().train(), random_documents(9)
    losses = measure_documents(policy, documents, numbers=numbers, layout=LAYOUTS[2], devices=CPU)
    measured = measure_loss(policy, documents, numbers=numbers, layout=LAYOUTS[0], devices=CPU)
    assert losses.over(numbers).loss == pytest.approx(measured.loss, rel=1e-6)
    assert losses.over(numbers).total_loss_weight == measured.total_loss_weight
    assert losses.numbers.tolist() == sorted(set(numbers))
    assert policy.training


def test_progress_counts_every_document_once():
    told: list[int] = []
    measure_documents(
        small_policy(),
        random_documents(9),
        numbers=range(9),
        layout=LAYOUTS[1],
        devices=CPU,
        on_progress=told.append,
    )
    assert sum(told) == 9
    assert len(told) > 1


def test_a_loss_that_is_no_number_is_an_error():
    policy = small_policy(tie_word_embeddings=False).train()
    with torch.no_grad():
        policy.model.get_input_embeddings().weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="evaluation: the loss is nan; "):
        measure_documents(policy, random_documents(3), numbers=[0], layout=ALONE, devices=CPU)
    assert policy.training


def of_lines(*lines: int, num_targets: list[int], weight: float = 1.0) -> Documents:
    """Documents of some lines of a file, with so many targets each."""
    documents: list[Document] = []
    for line, number in zip(lines, num_targets, strict=True):
        loss_weights = np.array([0.0] + [weight] * number, np.float32)
        documents.append(Document(np.arange(number + 1, dtype=np.int32), loss_weights, 1, Origin("a", line)))
    return Documents(documents)


def test_the_documents_of_a_record_count_as_one_sum_divided_once():
    documents = of_lines(1, 1, 2, 3, num_targets=[1, 9, 2, 0])
    losses = DocumentLosses(documents, np.arange(4), np.array([10.0, 9.0, 5.0, 0.0]))
    named = [(each.origin, each.loss, each.num_targets) for each in highest_losses(losses, most=9)]
    assert named == [("a:2", 2.5, 2), ("a:1", 1.9, 10)]
    mean_of_means = (10 / 1 + 9 / 9) / 2
    assert mean_of_means > 2.5, "negative control: it would put the other record first"


def test_only_so_many_are_named_and_of_equal_ones_the_first():
    documents = of_lines(4, 5, 6, num_targets=[2, 2, 2])
    losses = DocumentLosses(documents, np.arange(3), np.array([6.0, 8.0, 8.0]))
    assert [each.origin for each in highest_losses(losses, most=2)] == ["a:5", "a:6"]


def test_a_record_that_was_not_measured_is_not_named():
    documents = of_lines(1, 2, num_targets=[2, 2])
    losses = DocumentLosses(documents, np.array([1]), np.array([0.0, 8.0]))
    assert [each.documents for each in highest_losses(losses, most=2)] == [(1,)]
