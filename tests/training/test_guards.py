"""Documents are blamed one by one; a loss far above those before it is a spike."""

from collections.abc import Sequence

import pytest
import torch
from tests.documents import Documents, random_documents, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import collate
from finetooth.model.policy import PolicyModel
from finetooth.training.guards import (
    FEWEST_LOSSES,
    REMEMBERED_LOSSES,
    blame_documents,
    highest_losses,
    usual_loss,
)

CPU = DeviceManager("cpu", "fp32")


def poisoned(documents: Documents, numbers: Sequence[int]) -> PolicyModel:
    """A policy that gives no finite loss for these documents: a token of theirs is infinite."""
    policy = small_policy(tie_word_embeddings=False)
    for number, document in enumerate(documents.documents):
        document.token_ids[document.token_ids == 63] = 1
        if number in numbers:
            document.token_ids[0] = 63
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[63] = torch.inf
    return policy


def test_the_documents_whose_own_loss_is_not_finite_are_named():
    documents = random_documents(9)
    policy = poisoned(documents, (2, 5))
    blame = blame_documents(policy, documents, numbers=range(9), devices=CPU)
    assert blame == "documents whose own loss is not finite: random.jsonl:3, random.jsonl:6"


def test_only_the_documents_of_the_step_are_looked_at():
    documents = random_documents(9)
    policy = poisoned(documents, (2, 5))
    blame = blame_documents(policy, documents, numbers=[5, 7], devices=CPU)
    assert blame == "documents whose own loss is not finite: random.jsonl:6"


def test_where_each_is_finite_alone_all_are_named():
    blame = blame_documents(small_policy(), random_documents(3), numbers=[2, 0], devices=CPU)
    assert blame == (
        "documents of this step: random.jsonl:3, random.jsonl:1; each is finite alone, "
        "so the learning rate or the model is to blame"
    )


def test_ten_documents_are_named_and_the_rest_counted():
    documents = random_documents(12)
    blame = blame_documents(poisoned(documents, range(12)), documents, numbers=range(12), devices=CPU)
    named = ", ".join(f"random.jsonl:{line}" for line in range(1, 11))
    assert blame == f"documents whose own loss is not finite: {named} and 2 more"


def falling_losses(num_losses: int, *, noise: float = 0.05) -> list[float]:
    """Losses that fall from 3 to 2 and jitter."""
    generator = torch.Generator().manual_seed(7)
    jitter = torch.randn(num_losses, generator=generator).tolist()
    return [3 - number / num_losses + noise * each for number, each in enumerate(jitter)]


def test_a_loss_far_above_the_last_ones_is_a_spike():
    losses = falling_losses(300)
    for place in range(FEWEST_LOSSES, len(losses)):
        recent = losses[max(0, place - REMEMBERED_LOSSES) : place]
        assert usual_loss(losses[place], recent) is None, "jitter is no spike"
        assert usual_loss(losses[place] + 1.5, recent) == pytest.approx(losses[place], abs=0.4)


def test_the_first_steps_and_losses_that_never_change_know_no_spike():
    assert usual_loss(50.0, falling_losses(FEWEST_LOSSES - 1)) is None
    assert usual_loss(2.1, [2.0] * 50) is None
    assert usual_loss(2.3, [2.0] * 50) == 2.0


def test_a_spike_among_the_last_losses_hides_no_other():
    """Negative control: a mean and a standard deviation would take the second for usual."""
    recent = [*falling_losses(60), 30.0, 25.0]
    assert usual_loss(20.0, recent) is not None


def test_the_documents_with_the_highest_loss_are_named():
    documents = random_documents(9)
    policy = small_policy()
    named = highest_losses(policy, documents, numbers=[2, 5, 7, 8], devices=CPU)
    alone = {
        f"random.jsonl:{number + 1}": policy(collate([(number,)], documents)).item()
        / float(documents.loss_weight_totals[number])
        for number in (2, 5, 7, 8)
    }
    expected = sorted(alone.items(), key=lambda item: -item[1])[:3]
    assert [(each["origin"], each["loss"]) for each in named] == [
        (origin, pytest.approx(loss)) for origin, loss in expected
    ]
