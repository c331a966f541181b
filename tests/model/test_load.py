"""Models load exactly or are refused in a sentence; fresh ones are reproducible; families are proved."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.documents import save_small_model, small_config, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.config.schema import ModelConfig
from finetooth.model.load import load_policy

CPU = DeviceManager("cpu", "fp32")


def refusal(model: ModelConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_policy(model, devices=CPU)
    return str(caught.value)


def fresh(folder: Path, config: transformers.PreTrainedConfig) -> ModelConfig:
    config.to_json_file(folder / "config.json")
    return ModelConfig(from_config=str(folder / "config.json"), tokenizer="unused")


def test_a_saved_model_loads_bit_for_bit(tmp_path: Path):
    save_small_model(tmp_path)
    policy = load_policy(ModelConfig(path=str(tmp_path)), devices=CPU)
    for name, tensor in small_policy().state_dict().items():
        assert torch.equal(policy.state_dict()[name], tensor)


def test_a_bf16_model_is_trained_in_fp32(tmp_path: Path):
    small_policy().model.bfloat16().save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(path=str(tmp_path)), devices=CPU)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_fresh_parameters_follow_the_seed(tmp_path: Path):
    model = fresh(tmp_path, small_config())
    first, same, other = (load_policy(model, devices=CPU, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_loading_leaves_the_global_random_state_alone(tmp_path: Path):
    before = torch.get_rng_state()
    load_policy(fresh(tmp_path, small_config()), devices=CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_the_models_own_dropout_is_set_to_zero(tmp_path: Path):
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    policy = load_policy(fresh(tmp_path, config), devices=CPU)
    assert {m.p for m in policy.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_dropout_that_config_json_leaves_out_is_set_to_zero_too(tmp_path: Path):
    fields = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "bos_token_id": 0, "eos_token_id": 0}))
    model = ModelConfig(from_config=str(tmp_path / "config.json"), tokenizer="unused")
    policy = load_policy(model, devices=CPU)
    assert {m.p for m in policy.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert policy.model.config.attn_pdrop == 0.0


SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**SMALL),
        transformers.MistralConfig(**SMALL, sliding_window=5),
        transformers.Gemma2Config(**SMALL, sliding_window=6),
        transformers.GraniteConfig(**SMALL, logits_scaling=4.0),
        transformers.CohereConfig(**SMALL),
        transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_families_are_computed_exactly(tmp_path: Path, config: transformers.PreTrainedConfig, precision: str):
    devices = DeviceManager("cpu", precision)  # type: ignore[arg-type]
    load_policy(fresh(tmp_path, config), devices=devices, must_pack=True)  # proves itself, or raises


def test_a_folder_that_is_not_there():
    assert refusal(ModelConfig(path="./nowhere")) == (
        "model.path: ./nowhere: no such folder; name an existing folder or a hub repository"
    )


def test_a_folder_without_config(tmp_path: Path):
    assert refusal(ModelConfig(path=str(tmp_path))) == (
        f"model.path: {tmp_path}/config.json: no such file; name a model with its config.json"
    )


def test_a_folder_without_parameters(tmp_path: Path):
    small_config().to_json_file(tmp_path / "config.json")
    assert refusal(ModelConfig(path=str(tmp_path))) == (
        f"model.path: {tmp_path} holds neither model.safetensors nor model.safetensors.index.json; "
        "name a folder with parameters"
    )


def test_parameters_that_do_not_belong_are_all_named(tmp_path: Path):
    save_small_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.zeros(7)
    tensors["extra.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    remedy = "check that they belong together"
    place = f"model.path: {tmp_path}: 1 parameters"
    assert refusal(ModelConfig(path=str(tmp_path))).split("\n") == [
        f"{place} are missing: model.layers.0.mlp.up_proj.weight; {remedy}",
        f"{place} have another shape than config.json says: model.norm.weight; {remedy}",
        f"{place} have no place in the model: extra.weight; {remedy}",
    ]


def test_parameters_that_are_not_numbers(tmp_path: Path):
    policy = small_policy()
    with torch.no_grad():
        policy.model.model.norm.weight[0] = torch.nan
    policy.save_pretrained(tmp_path)
    assert refusal(ModelConfig(path=str(tmp_path))) == (
        f"model.path: {tmp_path}: model.norm.weight holds values that are not finite; use an intact copy"
    )


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("nothing", "not JSON: Expecting value: line 1 column 1 (char 0); use an intact copy"),
        ("[]", "no model_type; use a transformers config.json"),
        ('{"hidden_size": 8}', "no model_type; use a transformers config.json"),
        (
            '{"model_type": "own"}',
            "transformers knows no model_type 'own'; "
            "code that comes with a model is not run; use a built-in architecture",
        ),
        (
            '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}',
            "its parameters are quantised; use the model's unquantised parameters",
        ),
        ('{"model_type": "t5"}', "t5 is not a causal language model; use a decoder-only model"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path: Path, content: str, fact: str):
    (tmp_path / "config.json").write_text(content)
    assert refusal(ModelConfig(path=str(tmp_path))) == f"model.path: {tmp_path}/config.json: {fact}"


def test_a_backbone_that_cannot_be_told_from_its_head(tmp_path: Path):
    experts = {"num_local_experts": 2, "intermediate_size_mlp": 24}
    assert refusal(fresh(tmp_path, transformers.Llama4TextConfig(**SMALL, **experts))) == (
        "model.from_config: Llama4ForCausalLM: its backbone cannot be told from its head; "
        "use another architecture"
    )


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert refusal(ModelConfig(path="someone/model")) == (
        "model.path: someone/model: not in the local cache, and offline mode is on; "
        "unset HF_HUB_OFFLINE to fetch it"
    )


def test_a_config_whose_values_have_the_wrong_type(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": "abc"}')
    message = refusal(ModelConfig(from_config=str(tmp_path / "config.json"), tokenizer="unused"))
    assert message.startswith(f"model.from_config: {tmp_path}/config.json: ")
    assert message.endswith("; correct the file")


def test_a_config_whose_numbers_do_not_fit_together(tmp_path: Path):
    config = transformers.LlamaConfig(**{**SMALL, "num_attention_heads": 4, "num_key_value_heads": 3})
    message = refusal(fresh(tmp_path, config))
    assert message.startswith("model.from_config: LlamaForCausalLM cannot compute: ")
    assert message.endswith("; check that the numbers in config.json fit together")
