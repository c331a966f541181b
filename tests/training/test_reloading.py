"""How far two policies are from one another is measured as a naive account has it."""

import math

import pytest
import torch
from tests.documents import random_documents

from finetooth.evaluation.generation import Generation
from finetooth.training import reloading
from finetooth.training.reloading import Behaviour, as_many_as_fit, distance

STOPPED, ENDLESS = Generation((1, 2), stopped=True), Generation((1, 2), stopped=False)


def test_differences_are_those_of_a_naive_account():
    torch.manual_seed(0)
    ours = [torch.randn(length, 11) for length in (3, 130)]
    theirs = [logits + 0.1 * torch.randn_like(logits) for logits in ours]
    found = distance(Behaviour(ours, [STOPPED, STOPPED]), Behaviour(theirs, [STOPPED, ENDLESS]))
    divergences = [
        sum(float(p) * math.log(float(p) / float(q)) for p, q in zip(one, other, strict=True))
        for a, b in zip(ours, theirs, strict=True)
        for one, other in zip(a.double().softmax(1), b.double().softmax(1), strict=True)
    ]
    pairs = zip(ours, theirs, strict=True)
    assert found.largest_logit_difference == pytest.approx(max(float((a - b).abs().max()) for a, b in pairs))
    assert found.mean_kl == pytest.approx(sum(divergences) / 133, rel=1e-9)
    assert (found.num_positions, found.num_other_answers) == (133, 1)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_far_from_everything(broken: float):
    ours = [torch.zeros(2, 3)]
    theirs = [torch.tensor([[0.0, 0.0, broken], [0.0, 0.0, 0.0]])]
    assert distance(Behaviour(ours, []), Behaviour(theirs, [])).largest_logit_difference == float("inf")


def test_another_vocabulary_is_far_from_everything():
    found = distance(Behaviour([torch.zeros(2, 3)], []), Behaviour([torch.zeros(2, 4)], []))
    assert found.largest_logit_difference == float("inf")


def test_documents_are_computed_as_far_as_their_logits_fit(monkeypatch: pytest.MonkeyPatch):
    documents = random_documents(20).documents
    assert as_many_as_fit(documents, vocab_size=64) == documents
    monkeypatch.setattr(reloading, "_MOST_BYTES", 4 * 64 * 30)
    some = as_many_as_fit(documents, vocab_size=64)
    assert 1 <= len(some) < 20
    assert sum(len(document.token_ids) for document in some) <= 30 or len(some) == 1
    monkeypatch.setattr(reloading, "_MOST_BYTES", 1)
    assert as_many_as_fit(documents, vocab_size=64) == documents[:1]
