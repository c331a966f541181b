"""Each precision computes, adds up and keeps numbers in the types that docs/precision.md names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.documents import random_documents, save_small_model
from tests.legacy_systems import configurable_file
from tests.training.test_trainer import make_config
from torch import nn

from finetooth.base.devices import DeviceManager
from finetooth.config.schema import ModelConfig
from finetooth.model.load import load_policy
from finetooth.training.trainer import SFTTrainer

FLOAT32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("precision", "compute", "kept"),
    [("fp32", FLOAT32, FLOAT32), ("bf16", BF16, FLOAT32), ("fp16", FP16, FLOAT32), ("bf16-pure", BF16, BF16)],
)
def test_types_of_each_precision(tmp_path: Path, precision: Any, compute: torch.dtype, kept: torch.dtype):
    devices = DeviceManager("cpu", precision)
    policy = load_policy(ModelConfig(path=str(save_small_model(tmp_path / "base"))), devices=devices)
    layers = [module for module in policy.layers[0].modules() if isinstance(module, nn.Linear)]
    computed: set[torch.dtype] = set()
    gradients: set[torch.dtype] = set()
    losses: set[torch.dtype] = set()
    for layer in layers:
        layer.register_forward_hook(lambda _module, _inputs, output: computed.add(output.dtype))
        layer.weight.register_hook(lambda gradient: gradients.add(gradient.dtype))
    policy.register_forward_hook(lambda _module, _inputs, output: losses.add(output.dtype))
    config = make_config(tmp_path / "run", max_steps=1, precision=precision)
    trainer = SFTTrainer(config, policy=policy, train=random_documents(8), devices=devices)
    trainer.train()
    assert computed == {compute}
    assert losses == {FLOAT32}
    assert gradients == {parameter.dtype for parameter in policy.parameters()} == {kept}
    states = [
        state for each in trainer.optimizer.state.values() for state in (each["exp_avg"], each["exp_avg_sq"])
    ]
    assert {state.dtype for state in states} == {kept}


def test_a_pt_file_is_read_into_pure_bf16(tmp_path: Path):
    configurable_file(tmp_path / "ckpt.pt")
    model = ModelConfig(path=str(tmp_path / "ckpt.pt"), tokenizer="unused")
    whole, pure = (load_policy(model, devices=DeviceManager("cpu", p)) for p in ("fp32", "bf16-pure"))
    ours = dict(pure.named_parameters())
    assert ours.keys() == dict(whole.named_parameters()).keys()
    for name, parameter in whole.named_parameters():
        assert torch.equal(ours[name], parameter.to(BF16)), name
    rotations = [buffer for name, buffer in pure.named_buffers() if name.endswith("inv_freq")]
    assert rotations
    assert all(buffer.dtype is FLOAT32 for buffer in rotations)
