"""Many small gradients in bf16 add up to what float32 makes of them; float32 ones are left alone."""

import contextlib

import pytest
import torch
from tests.documents import random_documents, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import collate
from finetooth.training.gradient_sums import GradientSums
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import alone
from finetooth.training.step import _accumulate

NUM_PASSES = 600


def gradient_of_many_passes(dtype: torch.dtype, sums: GradientSums) -> tuple[float, torch.dtype]:
    weight = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    for number in range(NUM_PASSES):
        is_last = number == NUM_PASSES - 1
        if is_last:
            sums.give_back()
        with contextlib.nullcontext() if is_last else sums.adding([weight]):
            (weight * 0.01).sum().backward()
        assert is_last or (weight.grad is None) == (dtype == torch.bfloat16)
    assert weight.grad is not None
    return float(weight.grad[0]), weight.grad.dtype


def test_small_gradients_are_not_lost():
    gradient, dtype = gradient_of_many_passes(torch.bfloat16, GradientSums())
    assert dtype == torch.bfloat16
    assert gradient == pytest.approx(0.01 * NUM_PASSES, rel=2**-7)


def test_float32_is_added_in_place():
    assert gradient_of_many_passes(torch.float32, GradientSums())[0] == pytest.approx(
        0.01 * NUM_PASSES, rel=1e-4
    )


def test_without_the_sums_they_are_lost():
    weight = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    for _ in range(NUM_PASSES):
        (weight * 0.01).sum().backward()
    assert weight.grad is not None
    assert float(weight.grad[0]) < 0.7 * 0.01 * NUM_PASSES


def test_a_step_that_is_tried_again_forgets_the_passes_before():
    devices, documents = DeviceManager("cpu", "bf16-pure"), random_documents(6)
    policy = small_policy().to(torch.bfloat16)
    shared, optimizer = alone(policy), create_optimizer(policy, learning_rate=1e-3)
    batches = [collate([(number,)], documents) for number in range(6)]
    gradients: list[list[torch.Tensor | None]] = []
    for left_in_the_midst in (False, True):
        if left_in_the_midst:
            with shared.accumulating(is_last=False):
                shared.backward(shared.loss_sum(batches[0], gradient_scale=1.0))
        _accumulate(shared, batches, 10.0, optimizer, devices.gradient_scaler(), devices)
        gradients.append([p.grad for p in policy.parameters()])
        optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))  # type: ignore[arg-type]
