"""The size of a model is told as transformers counts it, from files alone, or refused in a sentence."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from tests.documents import save_small_model, small_config

from finetooth.base.errors import ConfigError
from finetooth.config.schema import ModelConfig
from finetooth.model.legacy.reading import load_legacy
from finetooth.model.shape import shape_of

SMALL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "vocab_size": 64}
CONFIGS = {
    "llama": transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **SMALL
    ),
    "tied": small_config(),
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL),
    "mixture": transformers.Qwen3MoeConfig(
        hidden_size=32, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=8, num_experts_per_tok=2, **SMALL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_fresh_parameters_are_counted_from_config_json(name: str, tmp_path: Path):
    CONFIGS[name].save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
    shape = shape_of(ModelConfig(from_config=str(tmp_path / "config.json"), tokenizer="any"))
    assert shape.is_fresh
    assert shape.num_parameters == pytest.approx(model.num_parameters(), rel=0.05)  # norms, biases


def test_a_folder_is_counted_in_its_files(tmp_path: Path):
    save_small_model(tmp_path, tie_word_embeddings=False)
    shape = shape_of(ModelConfig(path=str(tmp_path)))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert shape.num_parameters == model.num_parameters()
    assert (shape.positions, shape.hidden, shape.layers, shape.feed_forward) == (256, 32, 2, 48)
    assert (shape.query_width, shape.key_width, shape.vocabulary) == (32, 16, 64)
    assert not shape.is_fresh


def test_only_the_experts_that_a_token_passes_count_for_it(tmp_path: Path):
    CONFIGS["mixture"].save_pretrained(tmp_path)
    shape = shape_of(ModelConfig(from_config=str(tmp_path / "config.json"), tokenizer="any"))
    assert shape.feed_forward == 2 * 16


@pytest.mark.parametrize(
    "system", ["configurable_gpt_gpt2", "configurable_gpt_llama", "per_head_gpt", "simple_llama"]
)
def test_a_pt_file_is_counted_without_building_it(system: str, shared: Path):
    path = str(next((shared / "checkpoints" / system).glob("*.pt*")))
    shape = shape_of(ModelConfig(path=path, tokenizer="any"))
    model = load_legacy(path, "model.path")
    assert shape.layers == model.config.get_text_config().num_hidden_layers
    assert shape.positions == model.config.get_text_config().max_position_embeddings
    assert shape.num_parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "{folder}/config.json: no such file; name a model with its config.json"),
        ("{", "{folder}/config.json: not JSON: Expecting property name enclosed in double quotes: "
              "line 1 column 2 (char 1); use an intact copy"),
        ("[]", "{folder}/config.json: no JSON object; use a transformers config.json"),
        ('{"model_type": "t5"}', "config.json names no hidden_size, no num_hidden_layers, "
         "no num_attention_heads, no vocab_size; use the config.json of a causal language model"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(config: str | None, said: str, tmp_path: Path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
        save_small_model(tmp_path / "model")
        (tmp_path / "model/model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError) as caught:
        shape_of(ModelConfig(path=str(tmp_path)))
    assert caught.value.problems == [f"model.path: {said.format(folder=tmp_path)}"]


def test_an_adapter_is_no_base(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError) as caught:
        shape_of(ModelConfig(path=str(tmp_path)))
    fact = f"model.path: {tmp_path} is an adapter, not a model"
    assert str(caught.value) == f"{fact}; merge it first: finetooth export RUN --to merged"
