"""AdamW with states of 8 bits learns as AdamW does, keeps them small, and resumes to the same bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.documents import random_documents, save_small_model, small_policy
from tests.training.test_trainer import losses, make_config
from torch import nn

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.config.schema import ModelConfig
from finetooth.model import four_bits
from finetooth.model.load import load_policy
from finetooth.training.checkpoint import CheckpointManager
from finetooth.training.eight_bit import eight_bit_adamw, is_eight_bit
from finetooth.training.optimizer import create_optimizer, new_states
from finetooth.training.trainer import SFTTrainer

WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
}  # its embedding and matrices have more than 4,096 elements


def test_only_matrices_decay_and_large_ones_have_small_states():
    policy = small_policy(**WIDE)
    optimizer = create_optimizer(policy, learning_rate=1e-3, weight_decay=0.1, kind="adamw_8bit")
    assert is_eight_bit(optimizer)
    assert not is_eight_bit(create_optimizer(policy, learning_rate=1e-3))
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    sizes: dict[torch.dtype, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
            state = optimizer.state[parameter]
            small = parameter.numel() >= 4096
            assert state["state1"].dtype == state["state2"].dtype == (torch.uint8 if small else torch.float32)
            expected = new_states(optimizer, parameter)
            assert {n: (t.dtype, t.shape) for n, t in expected.items()} == {
                n: (state[n].dtype, state[n].shape) for n in expected
            }
            sizes[state["state1"].dtype] = sizes.get(state["state1"].dtype, 0) + parameter.numel()
    assert min(sizes[torch.uint8], sizes[torch.float32]) > 0


def test_it_learns_what_adamw_learns(tmp_path: Path):
    documents = random_documents(16)
    curves = []
    for kind in ("adamw", "adamw_8bit"):
        config = make_config(tmp_path / kind, optimizer=kind, max_steps=20)
        curves.append(losses(SFTTrainer(config, policy=small_policy(**WIDE), train=documents).train()))
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
    assert curves[1] != curves[0]
    assert curves[1][-1] < 0.9 * curves[1][0]


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({"optimizer": "adamw_8bit"}, torch.float32), ({"precision": "bf16-pure"}, torch.bfloat16)],
)
def test_resumed_is_uninterrupted(tmp_path: Path, settings: dict[str, str], dtype: torch.dtype):
    documents = random_documents(12)
    config = make_config(tmp_path / "whole", max_steps=6, **settings)
    devices = DeviceManager("cpu", config.training.precision)
    save_small_model(tmp_path / "base", **WIDE)
    base = load_policy(ModelConfig(path=str(tmp_path / "base")), devices=devices)
    whole = SFTTrainer(config, policy=base, train=documents)
    whole.train()
    checkpoints = CheckpointManager(tmp_path / "whole" / "checkpoints", keep=100)
    checkpoints.set_aside_after(3, best_step=None)
    found = checkpoints.latest(notify=print)
    assert found is not None
    assert found.state.next_step == 4
    again = SFTTrainer(
        replace(config, output_dir=str(tmp_path / "again")),
        policy=load_policy(ModelConfig(path=str(found.folder)), devices=devices),
        train=documents,
    )
    again.take_up(found)
    again.train()
    assert {parameter.dtype for parameter in again.policy.parameters()} == {dtype}
    ours, theirs = (dict(trainer.policy.named_parameters()) for trainer in (again, whole))
    for name, parameter in theirs.items():
        assert torch.equal(ours[name], parameter), name
        state, other = again.optimizer.state[ours[name]], whole.optimizer.state[parameter]
        assert state.keys() == other.keys()
        assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(other[key])) for key in other)


def test_without_bitsandbytes_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(four_bits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        create_optimizer(small_policy(), learning_rate=1e-3, kind="adamw_8bit")
    assert str(caught.value) == (
        "training.optimizer: adamw_8bit needs bitsandbytes; pip install 'finetooth[qlora]'"
    )


def test_a_device_without_it_is_refused():
    parameter = nn.Parameter(torch.ones(2, 2, device="meta"))
    with pytest.raises(ConfigError) as caught:
        eight_bit_adamw([{"params": [parameter]}], lr=1e-3)
    assert str(caught.value) == "training.optimizer: adamw_8bit does not run on meta; write adamw"
