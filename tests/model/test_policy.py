"""PolicyModel: packed rows equal documents alone; padded rows behave as any transformers model."""

import pytest
import torch
from tests.documents import Documents, gradients, largest_difference, random_documents, small_policy

from finetooth.batching.collate import collate
from finetooth.model.policy import PolicyModel


def summed(
    policy: PolicyModel, documents: Documents, rows: list[list[tuple[int, ...]]], **options: int
) -> float:
    policy.zero_grad()
    total = 0.0
    for group in rows:
        loss = policy(collate(group, documents, **options))
        loss.backward()
        total += loss.item()
    return total


alone = [[(number,)] for number in range(6)]


@pytest.mark.parametrize(
    "rows",
    [
        [[(0, 1, 2, 3, 4, 5)]],
        [[(5, 3), (1,), (4, 2, 0)]],
        [[(0, 1)], [(2, 3), (4, 5)]],
        [[(0, 1, 2)], [()], [(3, 4, 5), ()]],
    ],
)
@pytest.mark.parametrize("row_multiple", [1, 32])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_equals_one_document_per_row(rows: list[list[tuple[int, ...]]], row_multiple: int, tied: bool):
    documents, policy = random_documents(6), small_policy(tie_word_embeddings=tied)
    loss_alone = summed(policy, documents, alone)
    gradients_alone = gradients(policy)
    loss = summed(policy, documents, rows, row_multiple=row_multiple)
    assert loss == pytest.approx(loss_alone, rel=1e-6)
    assert largest_difference(gradients(policy), gradients_alone) < 1e-5


def test_packed_equals_transformers_own_loss_in_fp64():
    documents, policy = random_documents(6), small_policy().double()
    loss = summed(policy, documents, [[(0, 1, 2, 3, 4, 5)]])
    ours = gradients(policy)
    policy.zero_grad()
    total = 0.0
    for document in documents.documents:
        ids = torch.tensor(document.token_ids)[None].long()
        with policy.own_attention():
            logits = policy.model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        theirs = (losses * torch.tensor(document.loss_weights[1:])).sum()
        theirs.backward()
        total += theirs.item()
    assert loss == pytest.approx(total, rel=1e-6)  # transformers computes norms in fp32 even then
    assert largest_difference(ours, gradients(policy)) < 1e-6


def test_documents_in_a_row_do_not_see_each_other():
    policy = small_policy()
    first, second = random_documents(3), random_documents(3)
    second.documents[1].token_ids[:] = 1
    hidden = [policy.hidden_states(collate([(0, 1, 2)], documents))[0] for documents in (first, second)]
    start, end = int(first.lengths[0]), int(first.lengths[:2].sum())
    assert torch.equal(hidden[0][:start], hidden[1][:start])
    assert torch.equal(hidden[0][end:], hidden[1][end:])
    assert not torch.equal(hidden[0][start:end], hidden[1][start:end])


def test_padded_rows_give_logits_and_the_mean_loss_as_transformers_does():
    policy = small_policy()
    input_ids = torch.randint(64, (2, 9))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, :3] = -100
    ours = policy(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
    with policy.own_attention():
        theirs = policy.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.logits, theirs.logits)


def test_labels_may_all_be_ignored():
    policy = small_policy()
    assert policy(input_ids=torch.zeros(1, 4, dtype=torch.long), labels=torch.full((1, 4), -100)).loss == 0


def test_a_frozen_copy_neither_trains_nor_changes_with_the_policy():
    policy = small_policy()
    reference = policy.frozen_copy()
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())


def test_packing_with_the_wrong_positions_would_be_noticed():
    """Negative control: positions that jump within a document change the loss."""
    documents, policy = random_documents(6), small_policy()
    batch = collate([(0, 1, 2, 3, 4, 5)], documents)
    right = policy(batch).item()
    # Rotary positions are relative: shifting a whole document would change rounding only.
    batch.positions_BT[0, int(documents.lengths[0]) // 2 :] += 40
    assert policy(batch).item() != pytest.approx(right, rel=1e-4)
