"""Every family gives transformers' own loss and gradients, packed or not, and no document sees another."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.architectures import PACKED, UNPACKED, VOCABULARY, Family, ids, random_policy
from tests.documents import Documents, random_documents

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import Batch
from finetooth.batching.packing import Layout
from finetooth.model import attention
from finetooth.model.isolation import settle_packing
from finetooth.model.loss import LogitTransform
from finetooth.model.policy import PolicyModel
from finetooth.training import equivalence
from finetooth.training.equivalence import Computed, compare, compute_alone, compute_step, measure_leak

CPU = DeviceManager("cpu", "fp32")
IN_ONE_ROW = Layout(packing=True, row_tokens=128)
IN_ROWS = Layout(packing=True, row_tokens=32, rows_at_once=4)
PADDED = Layout(packing=False, row_tokens=32, rows_at_once=4)
FAMILIES = [*PACKED, *UNPACKED]
LARGEST_OF_LOSS, LARGEST_OF_GRADIENTS, LARGEST_LEAK_OF_EXPERTS = 1e-5, 1e-4, 1e-6


def some_documents() -> Documents:
    """Of 10 to 24 tokens with 1 to 16 targets, longer than every window."""
    return random_documents(6, vocab_size=VOCABULARY)


def assert_same(policy: PolicyModel, layout: Layout, own: Computed) -> None:
    ours = compute_step(policy, some_documents(), layout=layout, devices=CPU)
    assert ours.loss == pytest.approx(own.loss, rel=LARGEST_OF_LOSS)
    difference = compare(ours, own)
    assert difference.measured <= LARGEST_OF_GRADIENTS, difference.place


@pytest.mark.parametrize("family", FAMILIES, ids=ids(FAMILIES))
def test_every_layout_gives_the_loss_and_gradients_of_transformers(family: Family):
    """Those of `model(input_ids, labels=…)` of each document alone."""
    policy = random_policy(family.config).train()
    settle_packing(policy, devices=CPU)
    assert (policy.why_not_packed is None) == (family.why_not_packed is None)
    own = compute_alone(policy, some_documents(), devices=CPU)
    for layout in (PADDED,) if family.why_not_packed else (IN_ONE_ROW, IN_ROWS, PADDED):
        assert_same(policy, layout, own)


@pytest.mark.parametrize("family", FAMILIES, ids=ids(FAMILIES))
def test_no_document_changes_when_another_one_does(family: Family):
    """Not one bit; in a mixture of experts, tokens are grouped anew, which rounds otherwise."""
    policy = random_policy(family.config).eval()
    settle_packing(policy, devices=CPU)
    layout = PADDED if family.why_not_packed else IN_ONE_ROW
    leak = measure_leak(policy, some_documents(), layout=layout, devices=CPU)
    assert leak.measured <= (LARGEST_LEAK_OF_EXPERTS if family.has_experts else 0.0)


# Negative controls: what is broken on purpose is noticed, in every family that has it.


def families_with(*names: str) -> list[Family]:
    """Those whose config holds one of these settings."""
    return [family for family in PACKED if any(getattr(family.config, name, None) for name in names)]


def assert_noticed(family: Family) -> None:
    policy = random_policy(family.config).train()
    own = compute_alone(policy, some_documents(), devices=CPU)
    with pytest.raises(AssertionError):
        assert_same(policy, IN_ONE_ROW, own)


@pytest.mark.parametrize("family", PACKED[::5], ids=ids(PACKED[::5]))
def test_documents_that_see_one_another_would_be_noticed(family: Family, monkeypatch: pytest.MonkeyPatch):
    collate = equivalence.collate

    def as_one_document(*arguments: Any, **options: Any) -> Batch:
        batch = collate(*arguments, **options)
        num_tokens = batch.token_ids_BT.numel()
        offsets = torch.tensor([0, num_tokens], dtype=torch.int32)
        layout = replace(batch.layout, lengths=(num_tokens,), offsets_S1=offsets, longest=num_tokens)
        return replace(batch, layout=layout)

    monkeypatch.setattr(equivalence, "collate", as_one_document)
    assert_noticed(family)
    policy = random_policy(family.config).eval()
    assert measure_leak(policy, some_documents(), layout=IN_ONE_ROW, devices=CPU).measured > 1e-3


@pytest.mark.parametrize(
    ("left_out", "family"),
    [
        *(("window", family) for family in families_with("sliding_window")),
        *(("softcap", family) for family in families_with("attn_logit_softcapping")),
        *(("scale", family) for family in families_with("attention_multiplier", "query_pre_attn_scalar")),
    ],
    ids=lambda value: value.name if isinstance(value, Family) else value,
)
def test_a_part_of_attention_that_is_left_out_would_be_noticed(
    left_out: str, family: Family, monkeypatch: pytest.MonkeyPatch
):
    whole = attention._each_document
    without: dict[str, Any] = {"window": None, "softcap": None, "scale": 1.0}

    def partly(*arguments: Any, **options: Any) -> torch.Tensor:
        return whole(*arguments, **{**options, left_out: without[left_out]})

    monkeypatch.setattr(attention, "_each_document", partly)
    assert_noticed(family)


@pytest.mark.parametrize(
    "family",
    families_with("logit_scale", "logits_scaling", "final_logit_softcapping"),
    ids=lambda family: family.name,
)
def test_logits_that_are_not_transformed_would_be_noticed(family: Family, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LogitTransform, "apply", lambda _, logits: logits)
    monkeypatch.setattr(LogitTransform, "backpropagate", lambda _, gradient, __: gradient)
    assert_noticed(family)
