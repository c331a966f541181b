"""The chunked head and loss equal the naive computation over all logits, gradients included."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from finetooth.model import loss as loss_module
from finetooth.model.head_chunks import chunk_rows
from finetooth.model.loss import LogitTransform, TrainedRows, head_loss, sft_loss, target_losses


def draw(num_targets: int, *, hidden: int = 6, vocabulary: int = 11) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    return {
        "hidden_ND": normal(num_targets, hidden),
        "weight_VD": normal(vocabulary, hidden),
        "bias_V": normal(vocabulary),
        "targets_N": torch.randint(vocabulary, (num_targets,), generator=generator),
        "loss_weights_N": torch.rand(num_targets, generator=generator, dtype=torch.float64),
    }


def naive(inputs: dict[str, torch.Tensor], transform: LogitTransform) -> torch.Tensor:
    logits = inputs["hidden_ND"] @ inputs["weight_VD"].T + inputs["bias_V"]
    logits = logits * transform.scale
    if transform.soft_cap is not None:
        logits = transform.soft_cap * torch.tanh(logits / transform.soft_cap)
    losses = F.cross_entropy(logits, inputs["targets_N"], reduction="none")
    return (losses * inputs["loss_weights_N"]).sum()


@pytest.mark.parametrize(
    "transform",
    [LogitTransform(), LogitTransform(scale=0.25), LogitTransform(soft_cap=1.5), LogitTransform(3.0, 2.0)],
)
@pytest.mark.parametrize("num_targets", [1, 7, 8, 23])
@pytest.mark.parametrize("gradient_scale", [1.0, 1024.0])
def test_loss_and_gradients_equal_the_naive_ones(
    transform: LogitTransform, num_targets: int, gradient_scale: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocabulary, device_type: 7)
    inputs = draw(num_targets)
    trained = [inputs["hidden_ND"], inputs["weight_VD"], inputs["bias_V"]]
    ours = head_loss(**inputs, transform=transform, gradient_scale=gradient_scale)
    theirs = naive(inputs, transform)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for a, b in zip(
        torch.autograd.grad(ours * gradient_scale, trained),
        torch.autograd.grad(theirs * gradient_scale, trained),
        strict=True,
    ):
        assert (a - b).norm() / b.norm() < 1e-12


def test_fp32_gradients_are_within_1e5_of_fp64():
    inputs = draw(200, hidden=32, vocabulary=301)
    narrow = {
        name: (tensor.detach().float().requires_grad_() if tensor.is_floating_point() else tensor)
        for name, tensor in inputs.items()
    }
    wide_gradients = torch.autograd.grad(
        naive(inputs, LogitTransform()), [inputs["hidden_ND"], inputs["weight_VD"], inputs["bias_V"]]
    )
    ours = torch.autograd.grad(
        head_loss(**narrow), [narrow["hidden_ND"], narrow["weight_VD"], narrow["bias_V"]]
    )
    for a, b in zip(ours, wide_gradients, strict=True):
        assert (a.double() - b).norm() / b.norm() < 1e-5


def test_autocast_computes_in_bf16_and_sums_the_gradient_of_the_head_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocabulary, device_type: 7)
    inputs = draw(50)
    hidden, weight = (inputs[name].detach().float().requires_grad_() for name in ("hidden_ND", "weight_VD"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_loss(hidden, weight, None, inputs["targets_N"], inputs["loss_weights_N"])
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert not torch.equal(weight.grad, weight.grad.bfloat16().float()), "the gradient was rounded to bf16"


def test_without_targets_the_loss_is_a_zero_attached_to_the_graph():
    inputs = draw(4)
    empty = {**inputs, "hidden_ND": inputs["hidden_ND"][:0]}
    empty |= {"targets_N": inputs["targets_N"][:0], "loss_weights_N": inputs["loss_weights_N"][:0]}
    loss = head_loss(**empty)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, [inputs["weight_VD"]])
    assert not gradient.any()


def test_no_gradient_is_computed_where_none_is_wanted():
    with torch.no_grad():
        assert not head_loss(**draw(4)).requires_grad


def test_the_plain_reference_shifts_and_averages_over_targets():
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 2.0
    loss = sft_loss(logits, torch.tensor([[1, 2, 3]]), torch.tensor([[9.0, 1.0, 3.0]]))
    first = -F.log_softmax(logits[0, 0], -1)[2]
    second = -F.log_softmax(logits[0, 1], -1)[3]
    torch.testing.assert_close(loss, (first + 3 * second) / 4)


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(3.0, 2.0)])
@pytest.mark.parametrize("num_targets", [0, 1, 7, 23])
def test_the_losses_of_targets_add_up_to_the_loss(
    transform: LogitTransform, num_targets: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocabulary, device_type: 7)
    inputs = draw(num_targets)
    loss_weights_N = inputs.pop("loss_weights_N")
    losses_N = target_losses(**inputs, transform=transform)
    assert not losses_N.requires_grad
    for place in range(num_targets):
        only = torch.zeros(num_targets, dtype=torch.float64)
        only[place] = 1
        alone = naive({**inputs, "loss_weights_N": only}, transform)
        torch.testing.assert_close(losses_N[place], alone.detach(), rtol=1e-12, atol=0)
    summed = head_loss(**inputs, loss_weights_N=loss_weights_N, transform=transform).detach()
    torch.testing.assert_close((losses_N * loss_weights_N).sum(), summed, rtol=1e-12, atol=1e-15)


def test_rows_that_stand_in_count_in_the_losses_of_targets():
    inputs = draw(9)
    del inputs["loss_weights_N"]
    numbers_R, values_RD = torch.tensor([4, 1]), torch.randn(2, 6, dtype=torch.float64)
    whole = {**inputs, "weight_VD": inputs["weight_VD"].detach().index_copy(0, numbers_R, values_RD)}
    ours = target_losses(**inputs, rows=TrainedRows(numbers_R, values_RD))
    torch.testing.assert_close(ours, target_losses(**whole), rtol=1e-12, atol=0)
    assert not torch.allclose(ours, target_losses(**inputs)), "negative control"


def test_the_plain_reference_is_zero_without_targets():
    assert sft_loss(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3)) == 0


def test_rows_that_stand_in_for_those_of_a_frozen_head_have_its_rows_gradient(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocabulary, device_type: 7)
    inputs = draw(23)
    numbers_R = torch.tensor([4, 1])
    values_RD = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    frozen = {**inputs, "weight_VD": inputs["weight_VD"].detach()}
    ours = head_loss(**frozen, rows=TrainedRows(numbers_R, values_RD), gradient_scale=8.0)
    whole = {**inputs, "weight_VD": frozen["weight_VD"].index_copy(0, numbers_R, values_RD)}
    theirs = naive(whole, LogitTransform())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    wanted = [values_RD, inputs["hidden_ND"], inputs["bias_V"]]
    for a, b in zip(
        torch.autograd.grad(ours * 8.0, wanted), torch.autograd.grad(theirs * 8.0, wanted), strict=True
    ):
        assert (a - b).norm() / b.norm() < 1e-12


def allocated_at_most(work: Callable[[], object], folder: Path) -> int:
    """Bytes of tensors that were alive at once, beyond those that were there before."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    return max(accumulate(num_bytes for _, num_bytes in sorted(changes)))


def test_the_loss_of_a_vocabulary_of_151669_keeps_within_its_bound(tmp_path: Path):
    """The gradient of the head twice, and two chunks of logits, however many targets; not all logits."""
    num_targets, vocabulary, hidden = 512, 151_669, 16
    hidden_ND = torch.randn(num_targets, hidden, requires_grad=True)
    weight_VD = torch.randn(vocabulary, hidden, requires_grad=True)
    targets_N, loss_weights_N = torch.randint(vocabulary, (num_targets,)), torch.ones(num_targets)

    def chunked() -> None:
        head_loss(hidden_ND, weight_VD, None, targets_N, loss_weights_N).backward()

    def plain() -> None:
        F.cross_entropy(hidden_ND @ weight_VD.T, targets_N, reduction="sum").backward()

    logits = 4 * num_targets * vocabulary
    chunk = 4 * chunk_rows(vocabulary, "cpu") * vocabulary
    bound = 2 * weight_VD.nbytes + 2 * chunk + 1_000_000
    assert allocated_at_most(chunked, tmp_path) < bound < logits / 2
    assert allocated_at_most(plain, tmp_path) > logits, "negative control"
