"""AdamW with decay on matrices only, and the course of the learning rate."""

import math
from typing import Any, Literal

import torch
from torch import nn

from finetooth.config.schema import SFTConfig
from finetooth.training.eight_bit import eight_bit_adamw, is_eight_bit, new_eight_bit_states
from finetooth.training.stochastic_rounding import StochasticAdamW, own_part, update_in_float32


def create_optimizer(
    policy: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    kind: Literal["adamw", "adamw_8bit"] = "adamw",
    offload: bool = False,
    seed: int = 42,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov, Hutter 2019) over the parameters that are trained, in two groups.

    Parameters with two or more dimensions decay; the others (biases and norms, whatever they are
    called) do not. The fused implementation is used where the device has one. Parameters in bf16 have
    states in bf16, and are rounded stochastically.
    kind:    adamw, or adamw_8bit, whose states have 8 bits and parameters float32.
    offload: keeps the states in the host's memory, and computes there.
    seed:    decides how bf16 parameters are rounded.
    Raises ConfigError for adamw_8bit where bitsandbytes is not installed, or knows not the device.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": epsilon}
    if kind == "adamw_8bit":
        assert not offload, "the config's validation refuses it"
        return eight_bit_adamw(groups, **options)
    if any(parameter.dtype == torch.bfloat16 for parameter in trained):
        return StochasticAdamW(groups, **options, seed=seed, offload=offload)
    if offload:
        return OffloadedAdamW(groups, **options, fused=False)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(groups, **options, fused=fused)


def optimizer_for(policy: nn.Module, config: SFTConfig) -> torch.optim.Optimizer:
    """The optimiser that the config asks for. Raises what `create_optimizer` does."""
    training = config.training
    return create_optimizer(
        policy,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
        kind=training.optimizer,
        offload=config.parallel.offload_optimizer,
        seed=training.seed,
    )


def new_states(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors like the states that the optimiser will make for a parameter in its first update."""
    if isinstance(optimizer, (StochasticAdamW, OffloadedAdamW)):
        return optimizer.new_states(parameter)
    if is_eight_bit(optimizer):
        return new_eight_bit_states(parameter)
    return {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}


def settle_states(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
    """Brings states that were read from a checkpoint into the form and place that the optimiser wants."""
    if isinstance(optimizer, (StochasticAdamW, OffloadedAdamW)):
        optimizer.hold(parameter)
    if is_eight_bit(optimizer) and "step" in optimizer.state[parameter]:
        optimizer.state[parameter]["step"] = int(optimizer.state[parameter]["step"])


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW whose states stay in the host's memory; it computes there, one parameter after the other."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates every parameter that has a gradient; the results have the bits of fused AdamW on a CPU."""
        assert closure is None, "the loss is never computed again within a step"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def hold(self, parameter: torch.Tensor) -> None:
        """Brings a parameter's states to the host, making those that are absent."""
        state = self.state[parameter]
        if not state:
            state.update(self.new_states(parameter))
        for name, tensor in state.items():
            state[name] = tensor.cpu()

    def new_states(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The states of a parameter before its first update."""
        zeros = {name: torch.zeros_like(parameter, device="cpu") for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros(()), **zeros}

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        self.hold(parameter)
        state = {name: own_part(tensor) for name, tensor in self.state[parameter].items()}
        own = own_part(parameter)
        on_host, gradient = own.cpu(), own_part(parameter.grad).cpu()
        state["step"] += 1
        step = int(state["step"])
        update_in_float32(on_host, state["exp_avg"], state["exp_avg_sq"], gradient, group=group, step=step)
        if on_host is not own:
            own.copy_(on_host)


def num_warmup_steps(warmup_steps: float, num_steps: int) -> int:
    """Steps of warm-up: a value below 1 is a share of all steps.

    >>> num_warmup_steps(0.03, 1000), num_warmup_steps(100, 1000)
    (30, 100)
    """
    return math.ceil(warmup_steps * num_steps) if warmup_steps < 1 else int(warmup_steps)


def lr_at(
    step: int,
    *,
    num_steps: int,
    learning_rate: float,
    min_learning_rate: float = 0.0,
    warmup_steps: int = 0,
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine",
) -> float:
    """The learning rate of a step (1 … num_steps); a pure function, so resuming restores nothing.

    It rises linearly to `learning_rate` at step `warmup_steps`, then falls to `min_learning_rate` at
    the last step, along half a cosine (Loshchilov, Hutter 2017) or a line, or stays.

    >>> [round(lr_at(step, num_steps=5, learning_rate=1.0, warmup_steps=2), 3) for step in range(1, 6)]
    [0.5, 1.0, 0.75, 0.25, 0.0]
    """
    if step < warmup_steps:
        return learning_rate * step / warmup_steps
    if lr_scheduler_type == "constant":
        return learning_rate
    peak = max(1, warmup_steps)
    progress = min(1.0, (step - peak) / max(1, num_steps - peak))
    remaining = (1 + math.cos(math.pi * progress)) / 2 if lr_scheduler_type == "cosine" else 1 - progress
    return min_learning_rate + (learning_rate - min_learning_rate) * remaining
