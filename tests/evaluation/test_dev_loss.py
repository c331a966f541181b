"""The loss over documents is one sum divided once: the same for every layout, and the naive mean."""

import math

import numpy as np
import pytest
import torch
from tests.documents import Documents, random_documents, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import NonFiniteError
from finetooth.batching.packing import Layout
from finetooth.evaluation.dev_loss import MeasuredLoss, measure_loss
from finetooth.model.policy import PolicyModel

CPU = DeviceManager("cpu", "fp32")
LAYOUTS = [
    Layout(packing=False, row_tokens=64, rows_at_once=1),
    Layout(packing=False, row_tokens=64, rows_at_once=5),
    Layout(packing=True, row_tokens=30, rows_at_once=2),
    Layout(packing=True, row_tokens=64),
    Layout(packing=True, row_tokens=500),
]


@torch.no_grad()
def losses_alone(policy: PolicyModel, documents: Documents) -> list[tuple[float, float]]:
    """Each document's loss sum and total loss weight, by transformers' own logits and a plain loop."""
    alone: list[tuple[float, float]] = []
    for document in documents.documents:
        ids = torch.tensor(document.token_ids).long()
        with policy.own_attention():
            log_probabilities = policy.model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        loss_sum = sum(
            -float(weight) * float(log_probabilities[place - 1, ids[place]])
            for place, weight in enumerate(document.loss_weights)
            if weight
        )
        alone.append((loss_sum, float(document.loss_weights.sum())))
    return alone


def measure(policy: PolicyModel, documents: Documents, layout: Layout, numbers: list[int]) -> MeasuredLoss:
    return measure_loss(policy, documents, numbers=numbers, layout=layout, devices=CPU)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_measures_the_naive_mean_over_loss_weights(layout: Layout):
    policy, documents = small_policy(), random_documents(8)
    alone = losses_alone(policy, documents)
    measured = measure(policy, documents, layout, list(range(8)))
    total = sum(weight for _, weight in alone)
    assert measured.total_loss_weight == total
    assert measured.loss == pytest.approx(sum(loss for loss, _ in alone) / total, rel=1e-6)


def test_a_mean_of_means_would_be_noticed():
    """Negative control: documents counted alike, whatever their number of targets, give another loss."""
    policy, documents = small_policy(), random_documents(8)
    mean_of_means = np.mean([loss / weight for loss, weight in losses_alone(policy, documents)])
    assert measure(policy, documents, LAYOUTS[0], list(range(8))).loss != pytest.approx(
        mean_of_means, rel=1e-5
    )


def test_only_the_documents_that_are_named_count():
    policy, documents = small_policy(), random_documents(8)
    alone = losses_alone(policy, documents)
    measured = measure(policy, documents, LAYOUTS[3], [6, 1, 4])
    assert measured.loss == pytest.approx(
        sum(alone[number][0] for number in (6, 1, 4)) / sum(alone[number][1] for number in (6, 1, 4)),
        rel=1e-6,
    )


@pytest.mark.parametrize("is_training", [True, False])
def test_the_policy_stays_in_its_mode_and_gets_no_gradient(is_training: bool):
    policy = small_policy().train(is_training)
    measure(policy, random_documents(4), LAYOUTS[3], [0, 1, 2, 3])
    assert policy.training is is_training
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_measuring_is_done_without_dropout():
    policy = small_policy(attention_dropout=0.0)
    before = measure(policy, random_documents(4), LAYOUTS[3], [0, 1]).loss
    policy.train()
    policy.model.model.layers[0].mlp = torch.nn.Sequential(
        policy.model.model.layers[0].mlp, torch.nn.Dropout(0.5)
    )
    assert measure(policy, random_documents(4), LAYOUTS[3], [0, 1]).loss == before


def test_a_loss_that_is_no_number_is_an_error():
    policy = small_policy(tie_word_embeddings=False)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[:] = torch.inf
    with pytest.raises(NonFiniteError) as caught:
        measure(policy.train(), random_documents(4), LAYOUTS[3], [0, 1])
    assert str(caught.value) == (
        "evaluation: the loss is nan; the last updates broke the policy; "
        "train again with a lower training.learning_rate"
    )
    assert policy.training


@pytest.mark.parametrize(("loss", "perplexity"), [(0.0, 1.0), (2.0, math.exp(2)), (800.0, math.exp(700))])
def test_perplexity_is_the_exponential_of_the_loss(loss: float, perplexity: float):
    assert MeasuredLoss(loss, 1.0).perplexity == perplexity
