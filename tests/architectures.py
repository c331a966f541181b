"""Small random models of the families that people fine-tune, each with what makes it particular.

Windows are narrower than the documents of the tests, caps and scales are far from doing nothing, and every
parameter is random, biases and norms included.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from finetooth.model.policy import PolicyModel

VOCABULARY = 50
WINDOW = 5
GIVEN = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
OF_GPT2 = {**GIVEN, **NO_DROPOUT, "n_embd": 16, "n_layer": 2, "n_head": 2}
PLAIN = {
    **GIVEN,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
GROUPED = {**PLAIN, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {**GROUPED, "head_dim": 8}
ALTERNATING = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
QWEN3_NEXT = {
    **SMALL,
    **EXPERTS,
    "num_experts": 4,
    "shared_expert_intermediate_size": 8,
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
JAMBA = {**GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "mamba_d_state": 4}
SINKS = {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": WINDOW}
OPT = {"word_embed_proj_dim": 16, "ffn_dim": 24, "dropout": 0.0}
GEMMA4 = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "global_head_dim": 16}
GRANITE = {
    "logits_scaling": 4.0,
    "attention_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
}
GPT_NEO = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "window_size": WINDOW,
}

OUT_OF_REACH = "its attention cannot be kept within packed documents"
DROPS_LAYOUT = "it does not pass the layout of packed documents on to its attention"
HAS_SINKS = "its attention has sinks, which packed documents would share"
NOT_ALONE = "the hidden states of packed documents differ from those of each alone"


@dataclass(frozen=True)
class Family:
    """An architecture.

    why_not_packed: how the reason begins for which documents cannot share a row; None where they can
    has_experts:    whether it is a mixture of experts
    """

    name: str
    config: PreTrainedConfig
    why_not_packed: str | None = None
    has_experts: bool = False


def _packed(name: str, config: PreTrainedConfig) -> Family:
    return Family(name, config)


def _experts(name: str, config: PreTrainedConfig) -> Family:
    return Family(name, config, has_experts=True)


t: Any = transformers
PACKED = [
    _packed("Llama", t.LlamaConfig(**SMALL, tie_word_embeddings=True)),
    _packed("Llama", t.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    _packed("Qwen2", t.Qwen2Config(**GROUPED)),
    _packed(
        "Qwen2",
        t.Qwen2Config(
            **GROUPED,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=1,
        ),
    ),
    _packed("Qwen3", t.Qwen3Config(**SMALL, tie_word_embeddings=True)),
    _packed("Mistral", t.MistralConfig(**SMALL, sliding_window=WINDOW)),
    _packed("Ministral", t.MinistralConfig(**SMALL, sliding_window=WINDOW, layer_types=ALTERNATING)),
    _packed("Gemma", t.GemmaConfig(**SMALL)),
    _packed(
        "Gemma 2",
        t.Gemma2Config(
            **SMALL,
            sliding_window=WINDOW,
            attn_logit_softcapping=0.3,
            final_logit_softcapping=0.5,
            query_pre_attn_scalar=3,
        ),
    ),
    _packed("Gemma 3", t.Gemma3TextConfig(**SMALL, sliding_window=WINDOW, layer_types=ALTERNATING)),
    _packed("Gemma 4", t.Gemma4TextConfig(**SMALL, **GEMMA4, sliding_window=WINDOW, layer_types=ALTERNATING)),
    _packed("Phi-2", t.PhiConfig(**PLAIN)),
    _packed("Phi-3", t.Phi3Config(**GROUPED, sliding_window=WINDOW)),
    _packed("OLMo", t.OlmoConfig(**GROUPED)),
    _packed("OLMo 2", t.Olmo2Config(**GROUPED)),
    _packed("OLMo 3", t.Olmo3Config(**GROUPED, sliding_window=WINDOW, layer_types=ALTERNATING)),
    _packed(
        "Granite",
        t.GraniteConfig(**GROUPED, **GRANITE),
    ),
    _packed("Cohere", t.CohereConfig(**GROUPED, logit_scale=0.25, use_qk_norm=True)),
    _packed(
        "Cohere 2",
        t.Cohere2Config(**GROUPED, sliding_window=WINDOW, layer_types=ALTERNATING, logit_scale=0.25),
    ),
    _packed("GPT-2", t.GPT2Config(**OF_GPT2)),
    _packed(
        "GPT-2", t.GPT2Config(**OF_GPT2, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True)
    ),
    _packed("GPT-BigCode", t.GPTBigCodeConfig(**OF_GPT2)),
    _packed("GPT-NeoX", t.GPTNeoXConfig(**PLAIN)),
    _packed("GPT-NeoX", t.GPTNeoXConfig(**PLAIN, use_parallel_residual=False, tie_word_embeddings=True)),
    _packed("OPT", t.OPTConfig(**PLAIN, **OPT)),
    _packed("StarCoder2", t.Starcoder2Config(**GROUPED, sliding_window=WINDOW, residual_dropout=0.0)),
    _packed("SmolLM3", t.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0])),
    _packed("GLM-4", t.Glm4Config(**SMALL)),
    _packed("EXAONE 4", t.Exaone4Config(**GROUPED, sliding_window=WINDOW, layer_types=ALTERNATING)),
    _packed("Helium", t.HeliumConfig(**{**SMALL, "head_dim": 4})),
    _packed("Seed-OSS", t.SeedOssConfig(**SMALL, attention_dropout=0.0, residual_dropout=0.0)),
    _packed("Ernie 4.5", t.Ernie4_5Config(**SMALL)),
    _packed("Apertus", t.ApertusConfig(**GROUPED)),
    _packed("Arcee", t.ArceeConfig(**SMALL)),
    _experts("Mixtral", t.MixtralConfig(**SMALL, num_local_experts=4, sliding_window=WINDOW)),
    _experts(
        "Qwen2-MoE", t.Qwen2MoeConfig(**GROUPED, **EXPERTS, shared_expert_intermediate_size=8, num_experts=4)
    ),
    _experts("Qwen3-MoE", t.Qwen3MoeConfig(**SMALL, **EXPERTS, num_experts=4)),
    _experts("OLMoE", t.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2)),
    _experts(
        "Granite-MoE",
        t.GraniteMoeConfig(**GROUPED, **GRANITE, num_local_experts=4, num_experts_per_tok=2),
    ),
]
UNPACKED = [
    Family("Bloom", t.BloomConfig(**GIVEN, hidden_size=16, n_layer=2, n_head=2), OUT_OF_REACH),
    Family("Falcon", t.FalconConfig(**PLAIN), OUT_OF_REACH),
    Family("Falcon", t.FalconConfig(**PLAIN, alibi=True, bias=True, parallel_attn=False), OUT_OF_REACH),
    Family("Falcon", t.FalconConfig(**PLAIN, new_decoder_architecture=True, num_kv_heads=1), OUT_OF_REACH),
    Family("GPT-J", t.GPTJConfig(**OF_GPT2, rotary_dim=4), OUT_OF_REACH),
    Family("GPT-Neo", t.GPTNeoConfig(**GIVEN, **GPT_NEO), OUT_OF_REACH),
    Family("MPT", t.MptConfig(**GIVEN, d_model=16, n_heads=2, n_layers=2), OUT_OF_REACH),
    Family("StableLM", t.StableLmConfig(**GROUPED), DROPS_LAYOUT),
    Family("Nemotron", t.NemotronConfig(**SMALL), DROPS_LAYOUT),
    Family("gpt-oss", t.GptOssConfig(**SINKS), HAS_SINKS, has_experts=True),
    Family("Mamba", t.MambaConfig(**GIVEN, hidden_size=16, num_hidden_layers=2, state_size=4), NOT_ALONE),
    Family("Jamba", t.JambaConfig(**JAMBA, attn_layer_offset=1), NOT_ALONE, has_experts=True),
    Family("Qwen3-Next", t.Qwen3NextConfig(**QWEN3_NEXT), NOT_ALONE, has_experts=True),
    Family("LFM2", t.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]), NOT_ALONE),
]


def ids(families: list[Family]) -> list[str]:
    """A name for each: that of the family, and a number where there are several."""
    names = [family.name for family in families]
    return [f"{name} {names[:place].count(name) + 1}".removesuffix(" 1") for place, name in enumerate(names)]


def random_policy(config: PreTrainedConfig, *, seed: int = 0) -> PolicyModel:
    """A policy of which no parameter is zero or one."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return PolicyModel(model)
