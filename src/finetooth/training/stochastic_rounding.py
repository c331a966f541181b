"""AdamW on bf16 parameters and states: computed in float32, written back with stochastic rounding.

bf16 has eight significant bits. Rounded to nearest, an update below half a unit in the last place is lost,
and a mean of squares that should fall by a thousandth stays where it is. Rounded up or down by chance, so
that the mean is right, both move as they should (Gupta et al. 2015).

The chance is a hash of (seed, step, parameter, place in it). So a resumed run rounds as the uninterrupted one
does, and ranks that share parameters round each element as one process would.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim.adamw import adamw

from finetooth.base.split_mix import GOLDEN, mix, signed
from finetooth.batching.order import draw_keys

# Elements computed at once: on a CPU what its cache holds, elsewhere enough for fast kernels.
CHUNK_ELEMENTS = {"cpu": 1 << 16}
CHUNK_ELEMENTS_ELSEWHERE = 1 << 22
# No document has such a number, so that dropout, which counts these, draws from other keys.
_FIRST_PARAMETER = 1 << 40
# What float32 has beyond bf16.
_DROPPED_BITS = 16


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov, Hutter 2019) whose states have their parameter's type, bf16 or float32.

    groups:  of parameters, each with its `weight_decay`, as every optimiser of torch takes them.
    seed:    decides, with a parameter's number of updates, how it is rounded.
    offload: keeps the states in the host's memory, and computes there.
    No more than a chunk of one parameter is held in float32 at a time.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int,
        offload: bool = False,
    ):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.seed = seed
        self.offload = offload

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        assert closure is None, "the loss is never computed again within a step"
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._update(parameter, group, number)

    def new_states(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The states of a parameter before its first update."""
        device = "cpu" if self.offload else parameter.device
        return {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter, device=device),
            "exp_avg_sq": torch.zeros_like(parameter, device=device),
        }

    def hold(self, parameter: torch.Tensor) -> None:
        """Brings a parameter's states to where they are kept, making those that are absent."""
        state = self.state[parameter]
        if not state:
            state.update(self.new_states(parameter))
        for name, tensor in state.items():
            if self.offload or name == "step":
                state[name] = tensor.cpu()

    def _update(self, parameter: torch.Tensor, group: dict[str, Any], number: int) -> None:
        assert parameter.grad is not None
        self.hold(parameter)
        state = self.state[parameter]
        state["step"] += 1
        step = int(state["step"])
        kept = own_part(parameter).view(-1)
        device = state["exp_avg"].device
        values, gradient = kept.to(device), own_part(parameter.grad).reshape(-1).to(device)
        mean, square = own_part(state["exp_avg"]).view(-1), own_part(state["exp_avg_sq"]).view(-1)
        key = int(draw_keys(self.seed, step, _FIRST_PARAMETER + number, count=1)[0])
        bits = _bits_of_chunks(key, first_place(parameter), len(values), device)
        for start, stop, bits_3N in bits:
            wide = [
                tensor[start:stop].to(torch.float32, copy=True) for tensor in (values, mean, square, gradient)
            ]
            update_in_float32(*wide, group=group, step=step)
            for narrow, computed, bits_N in zip((values, mean, square), wide, bits_3N, strict=False):
                write_rounded(narrow[start:stop], computed, bits_N)
        if values is not kept:
            kept.copy_(values)


def update_in_float32(
    values: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    gradient: torch.Tensor,
    *,
    group: dict[str, Any],
    step: int,
) -> None:
    """torch's fused AdamW, in place, on tensors of one shape; step counts from 1."""
    steps_before = torch.full((), step - 1.0, device=values.device)
    adamw(
        [values],
        [gradient],
        [mean],
        [square],
        [],
        [steps_before],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def write_rounded(narrow: torch.Tensor, values: torch.Tensor, bits: torch.Tensor) -> None:
    """Writes float32 values into a tensor of one shape, rounding them by chance where it is bf16.

    bits: int32, 0 … 65535 evenly. A value x between the neighbours a < b of bf16 becomes b with the
    probability (x − a)/(b − a), to 2⁻¹⁶. What bf16 can hold stays as it is; infinite stays infinite, and
    what is not a number stays none. Beyond the largest number of bf16, the neighbour is infinity.
    """
    if narrow.dtype != torch.bfloat16:
        narrow.copy_(values)
        return
    rounded = (values.view(torch.int32) + bits).bitwise_right_shift_(_DROPPED_BITS)
    narrow.view(torch.int16).copy_(rounded)
    if bool(values.sum().isnan()):
        # The bits of what is not a number may have overflowed into a number.
        narrow.copy_(torch.where(values.isnan(), values.to(narrow.dtype), narrow))


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or what this rank holds of one that the ranks share."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_place(parameter: torch.Tensor) -> int:
    """The place in the whole, flattened parameter at which this rank's part begins."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    assert not any(offset[1:]), "FSDP2 divides parameters along their first dimension"
    return offset[0] * parameter[0].numel() if parameter.ndim > 1 else offset[0]


def _bits_of_chunks(
    key: int, place: int, length: int, device: torch.device
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Start and stop of each chunk, and its bits: int32 [3, N], 0 … 65535."""
    size = min(length, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS_ELSEWHERE))
    counters = torch.arange(1, size + 1, device=device) * GOLDEN
    for start in range(0, length, size or 1):
        stop = min(start + size, length)
        values = mix(counters[: stop - start] + signed(key + (place + start) * GOLDEN))
        yield start, stop, values.view(torch.int16).view(-1, 4)[:, :3].T.to(torch.int32).bitwise_and_(0xFFFF)
