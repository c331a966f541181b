"""One optimiser update: sums inside, one division by the step's total loss weight, then clip and update."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import NonFiniteError, is_out_of_memory, out_of_memory, problem
from finetooth.batching.collate import Batch
from finetooth.training.parallel import SharedPolicy, whole

SMALLEST_LOSS_SCALE = 1.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one update did.

    loss:      the step's loss sum divided by its total loss weight, before the update
    grad_norm: 2-norm of the whole gradient before clipping
    """

    loss: float
    grad_norm: float


def train_step(
    shared: SharedPolicy,
    batches: Sequence[Batch],
    *,
    total_loss_weight: float,
    learning_rate: float,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    devices: DeviceManager,
    max_grad_norm: float | None,
    place: str = "step",
    nothing: Batch | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> StepResult:
    """Accumulates the gradient of all batches, over all ranks, and updates the parameters once.

    batches: this rank's, as many as on every other rank. total_loss_weight: of the whole step, over all
    batches of all ranks. place: names the step in messages.
    nothing: a batch without documents. Given one, the ranks agree that the memory of each has held the step
    before they add their gradients; else all raise DeviceMemoryError, and the step can be tried again.
    meanwhile: what the host does while the device computes; after it, the device is asked for loss and norm
    at once, which is the one time in a step that the host waits for it (in fp16 also for the loss scale).
    In fp16, a gradient that overflows is computed again from the same batches with a lower loss
    scale. A step without targets updates nothing.
    Raises NonFiniteError, before the update, when the loss or the gradient is not finite.
    """
    if total_loss_weight == 0:
        return StepResult(loss=0.0, grad_norm=0.0)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    while True:
        loss_sum = _accumulate(shared, batches, total_loss_weight, optimizer, scaler, devices, place, nothing)
        scaler.unscale_(optimizer)
        norm = _grad_norm(parameters)
        meanwhile()
        own_sum, grad_norm = torch.stack([loss_sum, norm.to(loss_sum)]).tolist()
        with shared.ranks.doing(f"{place}, adding up the loss"):
            loss = shared.ranks.sums([own_sum])[0] / total_loss_weight
        if math.isfinite(loss) and math.isfinite(grad_norm):
            break
        if not scaler.is_enabled() or scaler.get_scale() <= SMALLEST_LOSS_SCALE or not math.isfinite(loss):
            optimizer.zero_grad()
            scaler.update(scaler.get_scale())  # forgets this step
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {grad_norm}"
            remedy = (
                "the parameters were not touched; look at these documents, or lower training.learning_rate"
            )
            raise NonFiniteError(problem(place, what, remedy))
        _lower_scale(scaler)
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return StepResult(loss=loss, grad_norm=grad_norm)


def _accumulate(
    shared: SharedPolicy,
    batches: Sequence[Batch],
    total_loss_weight: float,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    devices: DeviceManager,
    place: str = "step",
    nothing: Batch | None = None,
) -> torch.Tensor:
    """Leaves the (scaled) gradient of the step's mean loss in the parameters.

    Returns the loss sum of this rank's batches: a float64 scalar on the device (float32 where it has none).
    """
    optimizer.zero_grad()
    shared.sums.clear()
    loss_sum = torch.zeros((), dtype=torch.float64 if devices.device.type != "mps" else torch.float32)
    loss_sum = loss_sum.to(devices.device)
    gradient_scale = scaler.get_scale() / total_loss_weight

    def accumulate(batch: Batch, *, is_last: bool) -> None:
        nonlocal loss_sum
        with shared.accumulating(is_last=is_last):
            with shared.ranks.doing(f"{place}, forward"):
                batch_sum = shared.loss_sum(batch.to(devices.device), gradient_scale=gradient_scale)
            with shared.ranks.doing(f"{place}, backward"), torch.autocast(devices.device.type, enabled=False):
                shared.backward(scaler.scale(batch_sum / total_loss_weight))
        loss_sum += batch_sum.detach()

    # autocast forgets the parameters that it has cast where its outermost block ends: here, after all passes
    with devices.autocast(), shared.policy.attention_of_training():
        with _agreeing_on_memory(shared, place) if nothing else contextlib.nullcontext():
            for number, batch in enumerate(batches, start=1):
                accumulate(batch, is_last=number == len(batches) and nothing is None)
        if nothing is not None:
            accumulate(nothing, is_last=True)
    return loss_sum


@contextlib.contextmanager
def _agreeing_on_memory(shared: SharedPolicy, place: str) -> Iterator[None]:
    failure: Exception | None = None
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error
    if shared.ranks.highest(int(failure is not None)):
        raise out_of_memory(place, failure) from None


def _lower_scale(scaler: torch.amp.GradScaler) -> None:
    """As `update` after an overflow; that one only knows of overflows in this rank's part of the gradient."""
    state = scaler.state_dict()
    lower = {"scale": state["scale"] * state["backoff_factor"], "_growth_tracker": 0}
    scaler.load_state_dict(state | lower)
    scaler.update(lower["scale"])


def _grad_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """2-norm of the whole gradient, over all ranks that share it; a float32 scalar where the gradient is."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if any(gradient.dtype == torch.bfloat16 for gradient in gradients):
        # The norms would be rounded to bf16, too.
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        return whole(torch.linalg.vector_norm(torch.stack(norms)))
    return whole(nn.utils.get_total_norm(gradients))
