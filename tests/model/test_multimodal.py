"""Of a multimodal model the language model is trained, where transformers loads one; else it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.architectures import ALTERNATING, GEMMA4, GROUPED, PLAIN, SMALL, VOCABULARY, WINDOW
from tests.documents import random_documents
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.batching.packing import Layout
from finetooth.config.schema import ModelConfig
from finetooth.model.load import load_policy, refuse_misfits
from finetooth.training.equivalence import compare, compute_alone, compute_step

t: Any = transformers
CPU = DeviceManager("cpu", "fp32")
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
IMAGE = {"image_token_index": 40}
TEXT_ALONE = "use a model of text alone, such as the one that it was made from"


def gemma3() -> PreTrainedModel:
    """With more layers for images than for text, and a dropout."""
    text = {
        **SMALL,
        "sliding_window": WINDOW,
        "layer_types": ALTERNATING,
        "attention_dropout": 0.1,
        "max_position_embeddings": 64,
    }
    config = t.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **IMAGE)
    return t.Gemma3ForConditionalGeneration(config)


def gemma4() -> PreTrainedModel:
    """Whose logits are soft-capped by a setting of its text part."""
    layers = {"sliding_window": WINDOW, "layer_types": ALTERNATING, "final_logit_softcapping": 0.5}
    config = t.Gemma4Config(text_config={**SMALL, **GEMMA4, **layers}, vision_config=None, audio_config=None)
    return t.Gemma4ForConditionalGeneration(config)


def qwen3_5() -> PreTrainedModel:
    sizes = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    text = {
        **SMALL,
        **sizes,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    }
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 16}
    return t.Qwen3_5ForConditionalGeneration(t.Qwen3_5Config(text_config=text, vision_config=vision))


def qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 2, "patch_size": 4}
    config = t.Qwen2VLConfig(text_config={**GROUPED, "rope_parameters": rope}, vision_config=vision)
    return t.Qwen2VLForConditionalGeneration(config)


def llava() -> PreTrainedModel:
    config = t.LlavaConfig(text_config=t.LlamaConfig(**PLAIN), vision_config=t.CLIPVisionConfig(**VISION))
    return t.LlavaForConditionalGeneration(config)


def mistral3() -> PreTrainedModel:
    vision = {**VISION, "model_type": "pixtral", "head_dim": 8}
    config = t.Mistral3Config(text_config=t.MistralConfig(**SMALL), vision_config=vision, **IMAGE)
    return t.Mistral3ForConditionalGeneration(config)


def mllama() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    text = {**GROUPED, "cross_attention_layers": [1], "rope_parameters": rope}
    vision = {**VISION, "num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 32}
    vision |= {"intermediate_layers_indices": [0]}
    return t.MllamaForConditionalGeneration(t.MllamaConfig(text_config=text, vision_config=vision, **IMAGE))


def saved(model: PreTrainedModel, folder: Path) -> ModelConfig:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    return ModelConfig(path=str(folder))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (gemma3, "Gemma3ForConditionalGeneration"),
        (gemma4, "Gemma4ForConditionalGeneration"),
        (qwen3_5, "Qwen3_5ForCausalLM"),
    ],
)
def test_the_language_model_is_trained_and_what_is_saved_loads(model: Any, kind: str, tmp_path: Path):
    """Gemma keeps its other parts, untouched; of Qwen 3.5, transformers takes the language model alone."""
    policy = load_policy(saved(model(), tmp_path / "base"), devices=CPU).train()
    assert type(policy.model).__name__ == kind
    assert len(policy.layers) == 2
    documents = random_documents(6, vocab_size=40)
    layout = Layout(packing=policy.why_not_packed is None, row_tokens=128, rows_at_once=4)
    ours = compute_step(policy, documents, layout=layout, devices=CPU)
    theirs = compute_alone(policy, documents, devices=CPU)
    assert compare(ours, theirs).measured < 1e-4
    assert not any("vision" in name for name in ours.gradients)

    policy.eval().save_pretrained(tmp_path / "final")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    token_ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        logits = plain.eval()(input_ids=token_ids, use_cache=False).logits
        torch.testing.assert_close(policy(input_ids=token_ids).logits, logits, rtol=1e-5, atol=1e-6)


def test_limits_and_loaders_of_the_text_part_count(tmp_path: Path):
    """Its number of positions is that of the model; what would load code or kernels is passed over."""
    model = saved(gemma3(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"] |= {"_attn_implementation": "kernels-community/evil", "auto_map": {"A": "evil.A"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    policy = load_policy(model, devices=CPU)
    assert "evil" not in policy.settings_files()["config.json"].decode()
    assert policy.vocab_size == VOCABULARY
    with pytest.raises(ConfigError) as caught:
        refuse_misfits(policy, None, longest_document=65)
    assert str(caught.value) == (
        "data.max_length: the longest document has 65 tokens, the model 64 positions; write 64 or less"
    )


@pytest.mark.parametrize(
    ("model", "name"), [(qwen2_vl, "qwen2_vl"), (llava, "llava"), (mistral3, "mistral3")]
)
def test_without_a_language_model_that_transformers_loads_it_is_refused(
    model: Any, name: str, tmp_path: Path
):
    with pytest.raises(ConfigError) as caught:
        load_policy(saved(model(), tmp_path), devices=CPU)
    fact = f"{name} is multimodal, and transformers loads no language model from it"
    assert str(caught.value) == f"model.path: {tmp_path}/config.json: {fact}; {TEXT_ALONE}"


def test_a_language_model_that_would_lose_its_other_parts_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_policy(saved(mllama(), tmp_path), devices=CPU)
    told = str(caught.value)
    assert told.startswith(f"model.path: {tmp_path}: ")
    assert "have no place in the model: multi_modal_projector.bias, " in told
    assert told.endswith(f", …; {TEXT_ALONE}")
