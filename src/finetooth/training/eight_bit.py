"""AdamW with states of 8 bits (Dettmers et al. 2022), as bitsandbytes has it.

Each state is divided into blocks of 256 values; a value is the place of its quotient by the block's largest
in a table of 256 numbers. Parameters of fewer than 4,096 elements keep states in float32.
"""

import sys
from typing import Any

import torch

from finetooth.base.errors import ConfigError, problem
from finetooth.model.four_bits import import_bitsandbytes

_PLACE = "training.optimizer"
_SMALLEST = 4096
_BLOCK = 256


def eight_bit_adamw(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit over float32 parameters, on the CPU or CUDA.

    options: lr, betas, eps. Raises ConfigError where bitsandbytes is not installed, or knows not the device.
    """
    device = groups[0]["params"][0].device.type
    if device not in ("cpu", "cuda"):
        raise ConfigError(problem(_PLACE, f"adamw_8bit does not run on {device}", "write adamw"))
    if not import_bitsandbytes():
        fact = "adamw_8bit needs bitsandbytes"
        raise ConfigError(problem(_PLACE, fact, "pip install 'finetooth[qlora]'"))
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(groups, **options)


def is_eight_bit(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `eight_bit_adamw` has made it; asks without loading bitsandbytes."""
    module = sys.modules.get("bitsandbytes")
    return module is not None and isinstance(optimizer, module.optim.AdamW8bit)


def new_eight_bit_states(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of the size of the states that a parameter will have."""
    if parameter.numel() < _SMALLEST:
        return {name: torch.zeros_like(parameter) for name in ("state1", "state2")}
    num_blocks = -(-parameter.numel() // _BLOCK)
    return {
        **{name: torch.zeros_like(parameter, dtype=torch.uint8) for name in ("state1", "state2")},
        **{name: torch.zeros(num_blocks, device=parameter.device) for name in ("absmax1", "absmax2")},
    }
