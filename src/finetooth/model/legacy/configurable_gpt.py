"""ConfigurableGPT, put together from parts: {model, optimizer, model_args, iter_num, best_val_loss, config}.

Four of its combinations are architectures of transformers:

    normalization    position_encoding  ffn_type   heads         architecture
    rmsnorm          rope               swiglu     any           Llama
    rmsnorm          rope               standard   any           Arcee
    layernorm*       rope               standard   any           StarCoder2
    layernorm*       learned_absolute   standard   not grouped   GPT-2

Queries and keys rotate in pairs of neighbours; the file holds the rotation's cosines and sines as well.
"""

from collections.abc import Mapping
from typing import Any

import torch

from finetooth.model.legacy.layouts import Constant, Entry, Layout, Needs, Settings, Twin, WrittenBy
from finetooth.model.legacy.steps import HalfRotary, Shared, Split, Transpose

_BIASED: Needs = {"bias": (True,)}
_NORM_BIASED: Needs = {"normalization": ("layernorm",)}
_GROUPED: Needs = {"attention": ("grouped-query",)}
_NOT_GROUPED: Needs = {"attention": ("multi-head",)}
_ROTARY: Needs = {"position_encoding": ("rope",)}
_LAYER_NORM: Needs = {"normalization": ("layernorm", "layernorm_nobias"), "norm_position": ("pre",)}
_RMS_NORM: Needs = {"normalization": ("rmsnorm",), "norm_position": ("pre",)}
# transformers calls the exact GELU gelu, too.
_STANDARD: Needs = {"ffn_type": ("standard",), "activation": ("gelu", "relu", "silu")}


def _linear(theirs: str, ours: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{theirs}.weight", f"{ours}.weight"),
        Entry(f"{theirs}.bias", f"{ours}.bias", needs=_BIASED),
    )


def _transposed(theirs: str, ours: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{theirs}.weight", f"{ours}.weight", (Transpose(),)),
        Entry(f"{theirs}.bias", f"{ours}.bias", needs=_BIASED),
    )


def _norm(theirs: str, ours: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{theirs}.weight", f"{ours}.weight"),
        Entry(f"{theirs}.bias", f"{ours}.bias", needs=_NORM_BIASED),
    )


def _embedding(ours: str) -> tuple[Entry, ...]:
    theirs, head = "token_embeddings.weight", "lm_head.weight"
    return (
        Entry((theirs, head), ours, (Shared(),), {"weight_tying": (True,)}),
        Entry(theirs, ours, needs={"weight_tying": (False,)}),
        Entry(head, head, needs={"weight_tying": (False,)}),
    )


def _rotary_attention(kind: str, biased: Needs) -> tuple[Entry, ...]:
    """Queries, keys and values; kind: weight or bias."""
    attention = "model.layers.{layer}.self_attn"
    ours = tuple(f"{attention}.{name}_proj.{kind}" for name in "qkv")
    theirs = "blocks.{layer}.attn"
    grouped = (f"{theirs}.c_q.{kind}", f"{theirs}.c_kv.{kind}")
    return (
        Entry(f"{theirs}.c_attn.{kind}", ours, (Split(3), HalfRotary()), {**_NOT_GROUPED, **biased}),
        Entry(grouped, ours, (Split(2), HalfRotary()), {**_GROUPED, **biased}),
    )


_ROTARY_ENTRIES = (
    *_embedding("model.embed_tokens.weight"),
    *_norm("blocks.{layer}.norm1", "model.layers.{layer}.input_layernorm"),
    *_rotary_attention("weight", {}),
    *_rotary_attention("bias", _BIASED),
    *_linear("blocks.{layer}.attn.c_proj", "model.layers.{layer}.self_attn.o_proj"),
    *_norm("blocks.{layer}.norm2", "model.layers.{layer}.post_attention_layernorm"),
    *_norm("final_norm", "model.norm"),
)
_ROTARY_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "intermediate_size": "d_ff",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "num_key_value_heads",
    "max_position_embeddings": "block_size",
    "rope_theta": "rope_theta",
    "tie_word_embeddings": "weight_tying",
}

_LLAMA = Twin(
    model_type="llama",
    needs={**_RMS_NORM, **_ROTARY, "ffn_type": ("swiglu",)},
    fields={**_ROTARY_FIELDS, "rms_norm_eps": "norm_eps", "attention_bias": "bias", "mlp_bias": "bias"},
    fixed={"hidden_act": "silu"},
    entries=(
        *_ROTARY_ENTRIES,
        *_linear("blocks.{layer}.ffn.w_gate", "model.layers.{layer}.mlp.gate_proj"),
        *_linear("blocks.{layer}.ffn.w_value", "model.layers.{layer}.mlp.up_proj"),
        *_linear("blocks.{layer}.ffn.w_out", "model.layers.{layer}.mlp.down_proj"),
    ),
)

_ARCEE = Twin(
    model_type="arcee",
    needs={**_RMS_NORM, **_ROTARY, **_STANDARD},
    fields={
        **_ROTARY_FIELDS,
        "rms_norm_eps": "norm_eps",
        "attention_bias": "bias",
        "mlp_bias": "bias",
        "hidden_act": "activation",
    },
    fixed={},
    entries=(
        *_ROTARY_ENTRIES,
        *_linear("blocks.{layer}.ffn.fc1", "model.layers.{layer}.mlp.up_proj"),
        *_linear("blocks.{layer}.ffn.fc2", "model.layers.{layer}.mlp.down_proj"),
    ),
)

_STARCODER2 = Twin(
    model_type="starcoder2",
    needs={**_LAYER_NORM, **_ROTARY, **_STANDARD},
    fields={
        **_ROTARY_FIELDS,
        "norm_epsilon": "norm_eps",
        "use_bias": "bias",
        "hidden_act": "activation",
    },
    fixed={"sliding_window": None},
    entries=(
        *_ROTARY_ENTRIES,
        *_linear("blocks.{layer}.ffn.fc1", "model.layers.{layer}.mlp.c_fc"),
        *_linear("blocks.{layer}.ffn.fc2", "model.layers.{layer}.mlp.c_proj"),
    ),
)

_GPT2 = Twin(
    model_type="gpt2",
    needs={**_LAYER_NORM, "position_encoding": ("learned_absolute",), **_STANDARD, **_NOT_GROUPED},
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "n_embd",
        "n_inner": "d_ff",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_positions": "block_size",
        "layer_norm_epsilon": "norm_eps",
        "activation_function": "activation",
        "tie_word_embeddings": "weight_tying",
    },
    fixed={},
    entries=(
        *_embedding("transformer.wte.weight"),
        Entry("pos_encoding.wpe.weight", "transformer.wpe.weight"),
        *_norm("blocks.{layer}.norm1", "transformer.h.{layer}.ln_1"),
        *_transposed("blocks.{layer}.attn.c_attn", "transformer.h.{layer}.attn.c_attn"),
        *_transposed("blocks.{layer}.attn.c_proj", "transformer.h.{layer}.attn.c_proj"),
        *_norm("blocks.{layer}.norm2", "transformer.h.{layer}.ln_2"),
        *_transposed("blocks.{layer}.ffn.fc1", "transformer.h.{layer}.mlp.c_fc"),
        *_transposed("blocks.{layer}.ffn.fc2", "transformer.h.{layer}.mlp.c_proj"),
        *_norm("final_norm", "transformer.ln_f"),
    ),
)


def _derived(settings: Settings) -> Settings:
    is_grouped = settings["num_key_value_heads"] < settings["n_head"]
    return {"attention": "grouped-query" if is_grouped else "multi-head"}


def _angles(settings: Settings) -> torch.Tensor:
    """Position times frequency, [block_size, features of a head / 2] (Su et al. 2021)."""
    num_features = settings["n_embd"] // settings["n_head"]
    exponents = torch.arange(0, num_features, 2).float() / num_features
    frequencies = 1.0 / float(settings["rope_theta"]) ** exponents
    return torch.outer(torch.arange(settings["block_size"]).float(), frequencies)


def _mask(settings: Settings) -> torch.Tensor:
    size = settings["block_size"]
    return torch.ones(size, size).tril()[None, None]


def _content(state: Mapping[str, torch.Tensor], settings: Any, facts: WrittenBy) -> dict[str, Any]:
    return {
        "model": state,
        "optimizer": {},
        "model_args": settings,
        "iter_num": facts.step,
        "best_val_loss": facts.best_dev_loss,
        "config": dict(facts.settings),
    }


CONFIGURABLE_GPT = Layout(
    name="configurable-gpt",
    state="model",
    settings="model_args",
    counts=("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "num_key_value_heads", "d_ff"),
    numbers=("norm_eps", "rope_theta"),
    layers="n_layer",
    heads="n_head",
    kv_heads="num_key_value_heads",
    width="n_embd",
    embedding="token_embeddings.weight",
    twins=(_LLAMA, _ARCEE, _STARCODER2, _GPT2),
    file_name="ckpt_{step:06d}.pt",
    content=_content,
    constants=(
        Constant("blocks.{layer}.attn.rope.cos_cached", lambda s: _angles(s).cos(), _ROTARY),
        Constant("blocks.{layer}.attn.rope.sin_cached", lambda s: _angles(s).sin(), _ROTARY),
        Constant("blocks.{layer}.attn.bias", _mask, {"attention_backend": ("manual",)}),
    ),
    defaults={"attention_backend": "sdpa"},
    derived=_derived,
)
