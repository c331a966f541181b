"""One update: the same gradients for every split into batches; nothing touched where a number is bad."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from tests.documents import Documents, gradients, largest_difference, random_documents, small_policy
from torch.utils._python_dispatch import TorchDispatchMode

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import NonFiniteError
from finetooth.batching.collate import Batch, collate
from finetooth.batching.packing import Layout, forward_passes, lay_out
from finetooth.model.policy import PolicyModel
from finetooth.model.recompute import Recompute
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import alone
from finetooth.training.step import _accumulate, train_step


def batches_of(documents: Documents, layout: Layout) -> list[Batch]:
    numbers = torch.arange(len(documents.lengths)).numpy()
    (rows,) = lay_out(numbers, documents.lengths, layout=layout)
    return [collate(group, documents) for group in forward_passes(rows, layout.rows_at_once)]


def accumulate(policy: PolicyModel, documents: Documents, layout: Layout) -> float:
    devices = DeviceManager("cpu", "fp32")
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    total = float(documents.loss_weight_totals.sum())
    batches = batches_of(documents, layout)
    scaler = devices.gradient_scaler()
    return float(_accumulate(alone(policy), batches, total, optimizer, scaler, devices)) / total


LAYOUTS = [
    Layout(packing=False, row_tokens=64, rows_at_once=8),
    Layout(packing=False, row_tokens=64, rows_at_once=4),
    Layout(packing=False, row_tokens=64, rows_at_once=2),
    Layout(packing=False, row_tokens=64, rows_at_once=1),
    Layout(packing=True, row_tokens=64),
    Layout(packing=True, row_tokens=300),
]


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)])
def test_every_layout_of_eight_documents_gives_the_same_gradient(
    layout: Layout, wide: bool, tolerance: float
):
    documents = random_documents(8)
    policies = [small_policy() for _ in range(2)]
    if wide:
        policies = [policy.double() for policy in policies]
    losses = [
        accumulate(policy, documents, each)
        for policy, each in zip(policies, (LAYOUTS[0], layout), strict=True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=min(tolerance, 1e-6))
    assert largest_difference(gradients(policies[1]), gradients(policies[0])) < tolerance


def test_a_mean_of_means_would_be_noticed():
    """Negative control: averaging the micro-batches' means changes loss and gradient by far more."""
    documents, policy, wrong = random_documents(8), small_policy(), small_policy()
    right_loss = accumulate(policy, documents, LAYOUTS[0])
    batches = batches_of(documents, LAYOUTS[3])
    wrong_loss = 0.0
    for batch in batches:
        mean = wrong(batch) / batch.loss_weights_N.sum() / len(batches)
        mean.backward()
        wrong_loss += mean.item()
    assert wrong_loss != pytest.approx(right_loss, rel=1e-4)
    assert largest_difference(gradients(wrong), gradients(policy)) > 1e-2


def update(
    policy: PolicyModel,
    documents: Documents,
    *,
    precision: str = "fp32",
    max_grad_norm: float | None = None,
    meanwhile: Callable[[], None] = lambda: None,
):
    devices = DeviceManager("cpu", precision)  # type: ignore[arg-type]
    optimizer, scaler = create_optimizer(policy, learning_rate=1e-3), devices.gradient_scaler()
    result = train_step(
        alone(policy),
        batches_of(documents, LAYOUTS[4]),
        total_loss_weight=float(documents.loss_weight_totals.sum()),
        learning_rate=1e-3,
        optimizer=optimizer,
        scaler=scaler,
        devices=devices,
        max_grad_norm=max_grad_norm,
        place="step 7",
        meanwhile=meanwhile,
    )
    return result, optimizer, scaler


def test_an_update_learns():
    policy, documents = small_policy(), random_documents(8)
    losses = [update(policy, documents)[0].loss for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("max_grad_norm", [0.01, 100.0, None])
def test_clipping_uses_the_norm_of_the_whole_step(max_grad_norm: float | None):
    documents, policy = random_documents(8), small_policy()
    accumulate(policy, documents, LAYOUTS[0])
    norm = torch.stack([gradient.norm() for gradient in gradients(policy).values()]).norm().item()
    result, optimizer, _ = update(small_policy(), documents, max_grad_norm=max_grad_norm)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    # Adam's first mean is 0.1 times the gradient it was given
    given_norm = (
        torch.stack([state["exp_avg"].norm() for state in optimizer.state.values()]).norm().item() / 0.1
    )
    assert given_norm == pytest.approx(min(norm, max_grad_norm or norm), rel=1e-4)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_step_that_is_not_finite_touches_nothing(poison: str):
    policy, documents = small_policy(), random_documents(8)
    if poison == "loss":
        with torch.no_grad():
            policy.model.get_input_embeddings().weight[documents.documents[2].token_ids[0]] = torch.inf
    else:
        policy.model.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with pytest.raises(NonFiniteError) as caught:
        update(policy, documents)
    fact = "the loss is nan" if poison == "loss" else "the gradient's norm is nan"
    assert str(caught.value) == (
        f"step 7: {fact}; "
        "the parameters were not touched; look at these documents, or lower training.learning_rate"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_fp16_overflow_lowers_the_scale_and_does_the_same_step_again():
    policy, documents = small_policy(), random_documents(8)
    result, _, scaler = update(policy, documents, precision="fp16")
    exact, _, _ = update(small_policy(), documents)
    assert result.loss == pytest.approx(exact.loss, rel=1e-2)
    assert result.grad_norm == pytest.approx(exact.grad_norm, rel=2e-2)
    calls: list[float] = []

    def overflow_twice(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(scaler.get_scale())
        return gradient * torch.inf if len(calls) <= 2 else gradient

    again = small_policy()
    num_batches = len(batches_of(documents, LAYOUTS[4]))
    again.model.model.norm.weight.register_hook(overflow_twice)
    repeated, _, lowered = update(again, documents, precision="fp16")
    assert lowered.get_scale() < scaler.get_scale()
    assert len(calls) > num_batches
    assert repeated.loss == pytest.approx(exact.loss, rel=1e-2)


class Casts(TorchDispatchMode):
    """Counts how often each of some tensors is copied in another type."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        super().__init__()
        self.counts = {tensor.data_ptr(): 0 for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def linear_weights(policy: PolicyModel) -> list[torch.Tensor]:
    modules = (module for layer in policy.layers for module in layer.modules())
    return [module.weight for module in modules if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("recompute", ["nothing", "elementwise", "all"])
def test_parameters_are_cast_once_per_step_and_not_once_per_pass(recompute: Recompute):
    documents, devices = random_documents(8), DeviceManager("cpu", "bf16")
    batches = batches_of(documents, LAYOUTS[2])
    ours, passes_alone = small_policy(), small_policy()
    for policy in (ours, passes_alone):
        policy.train()
        policy.set_recompute(recompute)
    with Casts(linear_weights(ours)) as casts:
        optimizer, scaler = create_optimizer(ours, learning_rate=1e-3), devices.gradient_scaler()
        _accumulate(alone(ours), batches, 1.0, optimizer, scaler, devices)
    assert len(batches) == 4
    assert set(casts.counts.values()) == {1}
    with Casts(linear_weights(passes_alone)) as casts:
        for batch in batches:
            with devices.autocast():
                loss_sum = passes_alone(batch)
            loss_sum.backward()
    assert min(casts.counts.values()) >= 4, "negative control"
    theirs = gradients(passes_alone)
    assert all(torch.equal(gradient, theirs[name]) for name, gradient in gradients(ours).items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_precisions_keep_fp32_parameters(precision: str):
    policy, documents = small_policy(), random_documents(8)
    _, optimizer, _ = update(policy, documents, precision=precision)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}


class Asked(TorchDispatchMode):
    """Notes every operation for which the host would wait for a device."""

    def __init__(self, noted: list[str]):
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}:
            self.noted.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("max_grad_norm", [0.01, None])
def test_a_step_asks_the_device_once_with_the_host_s_work_done(
    max_grad_norm: float | None, monkeypatch: pytest.MonkeyPatch
):
    noted: list[str] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: noted.append("tolist") or tolist(tensor))
    policy, documents = small_policy(), random_documents(8)
    with Asked(noted):
        update(policy, documents, max_grad_norm=max_grad_norm, meanwhile=lambda: noted.append("meanwhile"))
    assert noted == ["meanwhile", "tolist"]


def test_a_forward_pass_that_asks_is_noticed():
    noted: list[str] = []
    policy = small_policy()
    policy.register_forward_hook(lambda module, inputs, loss_sum: noted.append(f"{loss_sum:.1f}") or None)
    with Asked(noted):
        update(policy, random_documents(8))
    assert "_local_scalar_dense" in noted
