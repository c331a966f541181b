"""An adapter merged into its base: a model like any other, in float32."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from finetooth.base.devices import DeviceManager
from finetooth.config.schema import ModelConfig
from finetooth.model.adapters import read_adapter, read_adapter_config
from finetooth.model.load import AdapterKind, load_policy
from finetooth.model.policy import PolicyModel
from finetooth.model.quiet import quiet_transformers


def load_merged(folder: Path, *, kind: AdapterKind, device: str, place: str = "command line") -> PolicyModel:
    """The policy that an adapter's folder and the base that it names make together, without an adapter.

    The base is loaded, and all is computed, in float32. For qlora the base is the one in 4 bits that the
    adapter was trained on, its numbers written out: beside the original the adapter is another policy.
    Raises ConfigError where adapter or base cannot be read.
    """
    devices = DeviceManager(device, "fp32")
    base = ModelConfig(path=read_adapter_config(folder, place=place).base_model_name_or_path)
    policy = load_policy(base, devices=devices, place=f"{place}: base of {folder}", frozen_for=kind)
    model: Any = policy.model
    with quiet_transformers():
        if kind == "qlora":
            model = model.dequantize(dtype=torch.float32)
        adapter = read_adapter(model, folder, place=place)
        peft: Any = adapter.peft
        return PolicyModel(cast(PreTrainedModel, peft.merge_and_unload()))
