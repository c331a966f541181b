"""A LLaMA whose queries, keys and values stand in one matrix, head by head: {model_state_dict, config}.

`config` is a pickled TrainingConfig of the described system. Heads rotate in pairs of neighbours. The
variants with compressed keys (MLA) and with adapters in the file are no Llama.
"""

from collections.abc import Mapping
from typing import Any

import torch

from finetooth.base.torch_files import StoredObject
from finetooth.model.legacy.layouts import Entry, Layout, Settings, Twin, WrittenBy
from finetooth.model.legacy.steps import HalfRotary, SplitWithinHeads

_CONFIG_CLASS = "simple_llama.pretraining.config.TrainingConfig"
_LAYER = "model.layers.{layer}"

_LLAMA = Twin(
    model_type="llama",
    needs={"use_mla": (False,), "use_lora": (False,)},
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "intermediate_size": "num_hidden",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_heads",
        "max_position_embeddings": "max_seq_len",
        "rms_norm_eps": "eps",
        "rope_theta": "theta",
    },
    fixed={"hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False},
    entries=(
        Entry("embeddings.weight", "model.embed_tokens.weight"),
        Entry("decoder_blocks.{layer}.norm1.weight", f"{_LAYER}.input_layernorm.weight"),
        Entry(
            "decoder_blocks.{layer}.attention.qkv_linear.weight",
            tuple(f"{_LAYER}.self_attn.{name}_proj.weight" for name in "qkv"),
            (SplitWithinHeads(3), HalfRotary()),
        ),
        Entry("decoder_blocks.{layer}.attention.out.weight", f"{_LAYER}.self_attn.o_proj.weight"),
        Entry("decoder_blocks.{layer}.norm2.weight", f"{_LAYER}.post_attention_layernorm.weight"),
        Entry("decoder_blocks.{layer}.ffwd.w1.weight", f"{_LAYER}.mlp.gate_proj.weight"),
        Entry("decoder_blocks.{layer}.ffwd.w3.weight", f"{_LAYER}.mlp.up_proj.weight"),
        Entry("decoder_blocks.{layer}.ffwd.w2.weight", f"{_LAYER}.mlp.down_proj.weight"),
        Entry("norm.weight", "model.norm.weight"),
        Entry("final_linear.weight", "lm_head.weight"),
    ),
)


def _derived(settings: Settings) -> Settings:
    multiple = settings["multiple_of"]
    return {"num_hidden": multiple * -(-(8 * settings["n_embd"] // 3) // multiple)}


def _content(state: Mapping[str, torch.Tensor], settings: Any, facts: WrittenBy) -> dict[str, Any]:
    return {"model_state_dict": state, "config": StoredObject(_CONFIG_CLASS, settings)}


SIMPLE_LLAMA = Layout(
    name="simple-llama",
    state="model_state_dict",
    settings="config",
    settings_class=_CONFIG_CLASS,
    counts=("n_embd", "n_heads", "n_layers", "multiple_of", "max_seq_len"),
    numbers=("eps", "theta"),
    layers="n_layers",
    heads="n_heads",
    kv_heads="n_heads",
    width="n_embd",
    vocabulary=None,
    embedding="embeddings.weight",
    twins=(_LLAMA,),
    file_name="sft.pth",
    content=_content,
    defaults={"use_mla": False, "use_lora": False},
    derived=_derived,
)
