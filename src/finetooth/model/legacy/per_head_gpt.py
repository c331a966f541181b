"""A GPT with one matrix per head, ReLU and a bias in its head: {model_state_dict, stage, cfg, step, …}.

Queries, keys and values have no bias; in transformers' GPT-2 theirs are zero and stay so. The files hold
causal masks and position numbers as well.
"""

from collections.abc import Mapping
from typing import Any

import torch

from finetooth.model.legacy.head_bias import MODEL_TYPE
from finetooth.model.legacy.layouts import Constant, Entry, Layout, Settings, Twin, WrittenBy
from finetooth.model.legacy.steps import JoinHeads, Transpose

_HEADS = "attn_blocks.{layer}.attn.heads.{head}"


def _affine(theirs: str, ours: str) -> tuple[Entry, ...]:
    return (Entry(f"{theirs}.weight", f"{ours}.weight"), Entry(f"{theirs}.bias", f"{ours}.bias"))


def _transposed(theirs: str, ours: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{theirs}.weight", f"{ours}.weight", (Transpose(),)),
        Entry(f"{theirs}.bias", f"{ours}.bias"),
    )


_TWIN = Twin(
    model_type=MODEL_TYPE,
    needs={},
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "n_embed",
        "n_layer": "n_blocks",
        "n_head": "n_head",
        "n_positions": "context_length",
    },
    fixed={"activation_function": "relu", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False},
    entries=(
        Entry("token_embed.weight", "transformer.wte.weight"),
        Entry("position_embed.weight", "transformer.wpe.weight"),
        *_affine("attn_blocks.{layer}.ln1", "transformer.h.{layer}.ln_1"),
        Entry(
            tuple(f"{_HEADS}.{kind}.weight" for kind in ("query", "key", "value")),
            "transformer.h.{layer}.attn.c_attn.weight",
            (JoinHeads(3), Transpose()),
        ),
        *_transposed("attn_blocks.{layer}.attn.proj", "transformer.h.{layer}.attn.c_proj"),
        *_affine("attn_blocks.{layer}.ln2", "transformer.h.{layer}.ln_2"),
        *_transposed("attn_blocks.{layer}.mlp.hidden", "transformer.h.{layer}.mlp.c_fc"),
        *_transposed("attn_blocks.{layer}.mlp.proj", "transformer.h.{layer}.mlp.c_proj"),
        *_affine("layer_norm", "transformer.ln_f"),
        *_affine("lm_head", "lm_head"),
    ),
)


def _mask(settings: Settings) -> torch.Tensor:
    size = settings["context_length"]
    return torch.ones(size, size).tril()


def _content(state: Mapping[str, torch.Tensor], settings: Any, facts: WrittenBy) -> dict[str, Any]:
    return {
        "model_state_dict": state,
        "optimizer_state_dict": {},
        "stage": "sft",
        "cfg": settings,
        "step": facts.step,
        "metrics": {} if facts.dev_loss is None else {"dev_loss": facts.dev_loss},
        "pytorch_version": str(torch.__version__),
        "cuda_version": torch.version.cuda,
    }


PER_HEAD_GPT = Layout(
    name="per-head-gpt",
    state="model_state_dict",
    settings="cfg",
    counts=("n_head", "n_embed", "context_length", "vocab_size", "n_blocks"),
    numbers=(),
    layers="n_blocks",
    heads="n_head",
    kv_heads="n_head",
    width="n_embed",
    embedding="token_embed.weight",
    twins=(_TWIN,),
    file_name="sft.pt",
    content=_content,
    constants=(
        Constant("pos_idxs", lambda settings: torch.arange(settings["context_length"])),
        Constant(f"{_HEADS}.tril", _mask),
    ),
)
