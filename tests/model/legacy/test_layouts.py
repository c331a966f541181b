"""Every layout is read as the model that it is, and written back bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.legacy_systems import configurable_file, per_head_file, simple_file
from torch import nn

from finetooth.base.torch_files import read_torch_file
from finetooth.config.schema import ModelConfig
from finetooth.model.legacy.layouts import WrittenBy
from finetooth.model.legacy.origin import origin_of
from finetooth.model.legacy.writing import legacy_content, save_torch_file
from finetooth.model.load import load_model

FACTS = WrittenBy(step=12, dev_loss=2.0, best_dev_loss=1.5, settings={"learning_rate": 1e-5})
CLASSES = ["simple_llama.pretraining.config.TrainingConfig"]
GPT2 = {"normalization": "layernorm", "position_encoding": "learned_absolute", "ffn_type": "standard"}
FILES: dict[str, Callable[[Path], nn.Module]] = {
    "llama": lambda path: configurable_file(path),
    "llama, grouped, tied, biased, compiled": lambda path: configurable_file(
        path, prefix="_orig_mod.", num_key_value_heads=2, weight_tying=True, bias=True
    ),
    "gpt2, biased": lambda path: configurable_file(path, **GPT2, bias=True),
    "gpt2, tied": lambda path: configurable_file(
        path, **{**GPT2, "normalization": "layernorm_nobias"}, weight_tying=True, activation="relu"
    ),
    "starcoder2, grouped": lambda path: configurable_file(
        path, **{**GPT2, "position_encoding": "rope"}, num_key_value_heads=2
    ),
    "arcee": lambda path: configurable_file(path, ffn_type="standard", activation="silu"),
    "per head, parallel": lambda path: per_head_file(path, prefix="module."),
    "simple": lambda path: simple_file(path),
}


def loaded(path: Path) -> Any:
    return load_model(ModelConfig(path=str(path), tokenizer="unused"), place="model.path")


def written_back(path: Path, model: Any) -> dict[str, Any]:
    origin = origin_of(model.config)
    assert origin is not None
    save_torch_file(path, legacy_content(origin, dict(model.named_parameters()), FACTS))
    return read_torch_file(path, plain_objects=CLASSES)


def state_of(content: dict[str, Any]) -> dict[str, np.ndarray]:
    return content.get("model") or content["model_state_dict"]


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_the_system_itself(name: str, tmp_path: Path):
    theirs = FILES[name](tmp_path / "ckpt.pt")
    ids_BT = torch.randint(330, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tmp_path / "ckpt.pt")(ids_BT).logits, theirs(ids_BT), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", FILES)
def test_the_system_loads_what_is_written_back_strictly(name: str, tmp_path: Path):
    theirs = FILES[name](tmp_path / "ckpt.pt")
    before = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    state = state_of(written_back(tmp_path / "again.pt", loaded(tmp_path / "ckpt.pt")))
    theirs.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in state.items()}, strict=True)
    assert all(torch.equal(tensor, before[key]) for key, tensor in theirs.state_dict().items())


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reading_then_writing_changes_no_bit(data: st.DataObject, tmp_path: Path):
    heads = data.draw(st.sampled_from([1, 2, 4]))
    width = heads * 2 * data.draw(st.integers(1, 3))
    layers, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(3, 9))
    path, kind = tmp_path / "ckpt.pt", data.draw(st.sampled_from(["configurable", "per head", "simple"]))
    if kind == "per head":
        per_head_file(path, n_head=heads, n_embed=width, n_blocks=layers, vocab_size=rows)
    elif kind == "simple":
        simple_file(path, n_heads=heads, n_embd=width, n_layers=layers, vocab_size=rows)
    else:
        chosen = {
            "num_key_value_heads": data.draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
            "bias": data.draw(st.booleans()),
            "weight_tying": data.draw(st.booleans()),
            "ffn_type": data.draw(st.sampled_from(["swiglu", "standard"])),
        }
        configurable_file(path, n_head=heads, n_embd=width, n_layer=layers, vocab_size=rows, **chosen)
    before = state_of(read_torch_file(path, plain_objects=CLASSES))
    after = state_of(written_back(tmp_path / "again.pt", loaded(path)))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_settings_come_back_as_they_were(tmp_path: Path):
    for name, key in (("llama", "model_args"), ("per head, parallel", "cfg"), ("simple", "config")):
        FILES[name](tmp_path / "ckpt.pt")
        before = read_torch_file(tmp_path / "ckpt.pt", plain_objects=CLASSES)
        after = written_back(tmp_path / "again.pt", loaded(tmp_path / "ckpt.pt"))
        assert before[key] == after[key]
        assert name == "simple" or after.get("iter_num", after.get("step")) == 12


def test_a_config_object_is_written_as_pickle_itself_writes_it(tmp_path: Path):
    simple_file(tmp_path / "ckpt.pt")
    with pytest.raises(ModuleNotFoundError, match="simple_llama"):
        torch.load(tmp_path / "ckpt.pt", weights_only=False)


def test_biases_that_a_layout_lacks_are_zero_and_not_trained(tmp_path: Path):
    for name, pattern in (("per head, parallel", "attn.c_attn.bias"), ("gpt2, tied", ".bias")):
        FILES[name](tmp_path / "ckpt.pt")
        parameters = dict(loaded(tmp_path / "ckpt.pt").named_parameters())
        frozen = {key for key, parameter in parameters.items() if not parameter.requires_grad}
        assert frozen == {key for key in parameters if key.endswith(pattern) and "lm_head" not in key}
        assert not any(parameters[key].any() for key in frozen)


@pytest.mark.parametrize(
    "folder", ["configurable_gpt_gpt2", "configurable_gpt_llama", "per_head_gpt", "simple_llama"]
)
def test_checkpoints_of_the_systems_give_their_logits(folder: str, shared: Path):
    (file,) = (shared / "checkpoints" / folder).glob("*.pt*")
    expected = np.load(file.with_name("expected.npz"))
    with torch.no_grad():
        logits = loaded(file)(torch.from_numpy(expected["input_ids"])).logits
    np.testing.assert_allclose(logits.numpy(), expected["logits"], atol=1e-4)
