"""In fp16 all ranks try a step again with the same lower scale, also where only one met the overflow."""

from typing import Any

import pytest
import torch
from tests.documents import random_documents, small_policy
from tests.ranks import on_ranks

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.batching.collate import collate
from finetooth.batching.packing import Layout, forward_passes, lay_out
from finetooth.config.schema import ParallelConfig
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import distribute, whole
from finetooth.training.step import train_step

HUGE = 2.0**40


def train_with_huge_scale(ranks: Ranks, shard: str | None) -> tuple[Any, ...]:
    """(scale, growth count, learning rate, losses, parameters) after three steps from a huge scale."""
    devices, documents = DeviceManager("cpu", "fp16"), random_documents(9)
    policy = small_policy()
    shared = distribute(policy, ranks, parallel=ParallelConfig(shard=shard), devices=devices)
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    scaler = devices.gradient_scaler()
    scaler.load_state_dict(scaler.state_dict() | {"scale": HUGE})
    layout, losses = Layout(packing=True, row_tokens=48), []
    for first in range(0, 9, 3):
        numbers = torch.arange(first, first + 3).numpy()
        rows = lay_out(numbers, documents.lengths[numbers], layout=layout, world_size=ranks.world_size)
        result = train_step(
            shared,
            [collate(group, documents) for group in forward_passes(rows[ranks.rank], 1)],
            total_loss_weight=float(documents.loss_weight_totals[numbers].sum()),
            learning_rate=1e-3,
            optimizer=optimizer,
            scaler=scaler,
            devices=devices,
            max_grad_norm=1.0,
        )
        losses.append(result.loss)
    state = scaler.state_dict()
    parameters = [whole(parameter).detach().clone() for parameter in policy.parameters()]
    return state["scale"], state["_growth_tracker"], optimizer.param_groups[0]["lr"], losses, parameters


def train_both(ranks: Ranks) -> list[tuple[Any, ...]]:
    return [train_with_huge_scale(ranks, shard) for shard in (None, "all")]


@pytest.mark.slow
def test_an_overflow_lowers_the_scale_of_all_ranks_alike():
    alone = train_with_huge_scale(ALONE, None)
    assert alone[0] < HUGE
    assert 1 <= alone[1] <= 3, "steps are counted anew from the last overflow on"
    for kind in zip(*on_ranks(train_both, world_size=2), strict=True):
        for scale, growth, learning_rate, losses, parameters in kind:
            assert (scale, growth, learning_rate) == (*kind[0][:2], alone[2])
            assert losses == kind[0][3] == pytest.approx(alone[3], rel=1e-3)
            for ours, theirs in zip(parameters, alone[4], strict=True):
                assert (ours - theirs).norm() <= 1e-2 * theirs.norm()
