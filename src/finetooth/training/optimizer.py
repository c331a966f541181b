"""AdamW with decay on matrices only, and the course of the learning rate."""

import math
from typing import Literal

import torch
from torch import nn


def create_optimizer(
    policy: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov, Hutter 2019) over the parameters that are trained, in two groups.

    Parameters with two or more dimensions decay; the others (biases and norms, whatever they are
    called) do not. The fused implementation is used where the device has one.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=betas,
        eps=epsilon,
        fused=fused,
    )


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
