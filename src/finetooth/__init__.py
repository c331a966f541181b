"""Supervised fine-tuning of causal language models in which every token is accounted for.

The public names are imported when they are first used: `import finetooth` loads neither torch nor numpy.
"""

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetooth.base.devices import DeviceManager
    from finetooth.config.load import load_config
    from finetooth.config.schema import SFTConfig
    from finetooth.data.dataset import SFTDataset
    from finetooth.data.encode import encode_chat
    from finetooth.model.loss import sft_loss
    from finetooth.model.policy import PolicyModel
    from finetooth.training.checkpoint import CheckpointManager
    from finetooth.training.optimizer import create_optimizer
    from finetooth.training.trainer import SFTTrainer

__version__ = "0.1.0"

# Where the package `kernels` is installed, transformers fetches compiled code from the hub for some families,
# unless this stands in the environment before its own modules are imported. Who wants that writes 1.
os.environ.setdefault("USE_HUB_KERNELS", "0")

__all__ = [
    "CheckpointManager",
    "DeviceManager",
    "PolicyModel",
    "SFTConfig",
    "SFTDataset",
    "SFTTrainer",
    "__version__",
    "create_optimizer",
    "encode_chat",
    "load_config",
    "sft_loss",
]

_MODULES = {
    "CheckpointManager": "finetooth.training.checkpoint",
    "DeviceManager": "finetooth.base.devices",
    "PolicyModel": "finetooth.model.policy",
    "SFTConfig": "finetooth.config.schema",
    "SFTDataset": "finetooth.data.dataset",
    "SFTTrainer": "finetooth.training.trainer",
    "create_optimizer": "finetooth.training.optimizer",
    "encode_chat": "finetooth.data.encode",
    "load_config": "finetooth.config.load",
    "sft_loss": "finetooth.model.loss",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'finetooth' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
