"""Whatever the backward pass computes a second time, loss and gradients keep their bits and memory falls."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.architectures import PACKED, UNPACKED, VOCABULARY, Family, ids, random_policy
from tests.documents import gradients, random_documents, small_policy
from torch.utils.checkpoint import CheckpointError

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import Batch, collate
from finetooth.model.isolation import settle_packing
from finetooth.model.policy import PolicyModel
from finetooth.model.recompute import LADDER, Recompute

FAMILIES = [*PACKED, *UNPACKED]
ELSEWHERE = [recompute for recompute in LADDER if recompute != "nothing"]
DROPPING = (7, 1)


def compute(policy: PolicyModel, batch: Batch, recompute: Recompute) -> tuple[float, dict[str, torch.Tensor]]:
    policy.zero_grad()
    policy.set_recompute(recompute)
    loss_sum = policy(batch)
    with torch.autocast("cpu", enabled=False):
        loss_sum.backward()
    return loss_sum.item(), gradients(policy)


def assert_same_bits(policy: PolicyModel, batch: Batch, recompute: Recompute) -> None:
    loss, kept = compute(policy, batch, "nothing")
    same_loss, again = compute(policy, batch, recompute)
    assert same_loss == loss
    assert again.keys() == kept.keys()
    assert [name for name in kept if not torch.equal(kept[name], again[name])] == []


@pytest.mark.parametrize("family", FAMILIES, ids=ids(FAMILIES))
@pytest.mark.parametrize("recompute", ELSEWHERE)
def test_every_family_keeps_its_bits(family: Family, recompute: Recompute):
    """Documents that share a row, with an attention that is not the model's own, and documents apart."""
    policy = random_policy(family.config).train()
    settle_packing(policy, devices=DeviceManager("cpu", "fp32"))
    rows = [(0,), (1,), (2,)] if policy.why_not_packed else [(0, 1, 2)]
    assert_same_bits(policy, collate(rows, random_documents(3, vocab_size=VOCABULARY)), recompute)


@pytest.mark.parametrize("recompute", ELSEWHERE)
def test_what_is_dropped_is_dropped_again(recompute: Recompute):
    policy = small_policy().train()
    policy.set_dropout(0.5)
    batch = collate([(0, 1, 2)], random_documents(3), dropout_draw=DROPPING)
    assert_same_bits(policy, batch, recompute)


@pytest.mark.parametrize("recompute", ELSEWHERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_passes_in_16_bits_keep_their_bits(dtype: torch.dtype, recompute: Recompute):
    policy = small_policy().train()
    batch = collate([(0, 1, 2)], random_documents(3))
    with torch.autocast("cpu", dtype=dtype):
        assert_same_bits(policy, batch, recompute)


@pytest.mark.parametrize("forgotten", ["attention", "dropout"])
def test_a_context_that_has_ended_would_be_noticed(monkeypatch: pytest.MonkeyPatch, forgotten: str):
    """Negative control: with the model's own attention, or without dropout, the gradients differ."""
    policy = small_policy().train()
    policy.set_dropout(0.5 if forgotten == "dropout" else 0.0)
    draw = DROPPING if forgotten == "dropout" else None
    batch = collate([(0, 1, 2)], random_documents(3), dropout_draw=draw)

    @contextlib.contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(policy, "_again", nothing)
    # torch itself notices some of it, as other tensors are kept
    with pytest.raises((AssertionError, CheckpointError)):
        assert_same_bits(policy, batch, "all")


def test_each_of_the_ladder_keeps_less():
    policy = small_policy(num_hidden_layers=4, intermediate_size=128).train()
    batch = collate([(0, 1, 2)], random_documents(3, longest=200))
    kept: list[int] = []
    for recompute in LADDER:
        policy.set_recompute(recompute)
        with torch.profiler.profile(profile_memory=True) as profiler:
            loss_sum = policy(batch)
        kept.append(sum(event.self_cpu_memory_usage for event in profiler.events() or ()))
        del loss_sum
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(LADDER)
    assert kept[-1] < 0.2 * kept[0], kept


def test_evaluating_repeats_nothing():
    policy = small_policy().eval()
    policy.set_recompute("all")
    batch = collate([(0, 1)], random_documents(2))
    with torch.no_grad():
        expected = policy(batch)
    assert torch.equal(policy(batch), expected)


def test_a_copy_recomputes_its_own_layers():
    policy = small_policy().train()
    policy.set_recompute("all")
    other = copy.deepcopy(policy)
    batch = collate([(0, 1)], random_documents(2))
    other(batch).backward()
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())
