"""Documents are blamed one by one."""

from collections.abc import Sequence

import torch
from tests.documents import Documents, random_documents, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.model.policy import PolicyModel
from finetooth.training.guards import blame_documents

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
