"""The described systems' models, written down naively, and files as these systems save them.

B rows, T tokens, D features, H heads, F features of a head.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from finetooth.base.torch_files import StoredObject
from finetooth.model.legacy.writing import save_torch_file

CONFIG_CLASS = "simple_llama.pretraining.config.TrainingConfig"
CONFIGURABLE: dict[str, Any] = {
    "block_size": 32,
    "vocab_size": 330,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
    "d_ff": 24,
    "num_key_value_heads": 4,
    "normalization": "rmsnorm",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "position_encoding": "rope",
    "rope_theta": 500.0,
    "norm_position": "pre",
    "ffn_type": "swiglu",
    "bias": False,
    "weight_tying": False,
    "attention_backend": "sdpa",
    "dropout": 0.1,
}
PER_HEAD = {"n_head": 4, "n_embed": 16, "context_length": 32, "vocab_size": 330, "n_blocks": 2}
SIMPLE: dict[str, Any] = {
    "n_embd": 16,
    "n_heads": 4,
    "n_layers": 2,
    "multiple_of": 8,
    "max_seq_len": 32,
    "eps": 1e-5,
    "theta": 100,
    "use_mla": False,
    "use_lora": False,
    "batch_size": 4,
}


def rotated(x_BHTF: torch.Tensor, theta: float) -> torch.Tensor:
    """Neighbours (0, 1), (2, 3), … as complex numbers, turned by position times frequency."""
    num_features = x_BHTF.shape[-1]
    frequencies = theta ** (-torch.arange(0, num_features, 2) / num_features)
    turns = torch.polar(torch.ones(()), torch.outer(torch.arange(x_BHTF.shape[2]), frequencies))
    pairs = torch.view_as_complex(x_BHTF.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention, written out, [B, T, H · F]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    hidden = torch.ones_like(scores[0, 0]).triu(1).bool()
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2)


def heads(x_BTD: torch.Tensor, num_heads: int) -> torch.Tensor:
    return x_BTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class Norm(nn.Module):
    """LayerNorm with or without bias, or RMSNorm."""

    def __init__(self, kind: str, width: int, eps: float):
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.bias = nn.Parameter(torch.rand(width)) if kind == "layernorm" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "rmsnorm":
            return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """A block of ConfigurableGPT."""

    def __init__(self, s: dict[str, Any]):
        super().__init__()
        self.s, width, bias = s, s["n_embd"], s["bias"]
        keys = width // s["n_head"] * s["num_key_value_heads"]
        self.norm1, self.norm2 = (Norm(s["normalization"], width, s["norm_eps"]) for _ in range(2))
        self.attn, self.ffn = nn.Module(), nn.Module()
        if keys < width:
            self.attn.c_q = nn.Linear(width, width, bias)
            self.attn.c_kv = nn.Linear(width, 2 * keys, bias)
        else:
            self.attn.c_attn = nn.Linear(width, 3 * width, bias)
        self.attn.c_proj = nn.Linear(width, width, bias)
        names = ("w_gate", "w_value", "w_out") if s["ffn_type"] == "swiglu" else ("fc1", "fc2")
        for name in names:
            sizes = (s["d_ff"], width) if name in ("w_out", "fc2") else (width, s["d_ff"])
            setattr(self.ffn, name, nn.Linear(*sizes, bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.feed(self.norm2(x))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        s, attn = self.s, self.attn
        keys = x.shape[-1] // s["n_head"] * s["num_key_value_heads"]
        joined = attn.c_attn(x) if hasattr(attn, "c_attn") else torch.cat([attn.c_q(x), attn.c_kv(x)], -1)
        q, k, v = joined.split([x.shape[-1], keys, keys], dim=-1)
        q, k, v = (
            heads(q, s["n_head"]),
            heads(k, s["num_key_value_heads"]),
            heads(v, s["num_key_value_heads"]),
        )
        if s["position_encoding"] == "rope":
            q, k = rotated(q, s["rope_theta"]), rotated(k, s["rope_theta"])
        return attn.c_proj(attended(q, k, v))

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        if self.s["ffn_type"] == "swiglu":
            return self.ffn.w_out(F.silu(self.ffn.w_gate(x)) * self.ffn.w_value(x))
        return self.ffn.fc2(getattr(F, self.s["activation"])(self.ffn.fc1(x)))


class ConfigurableGPT(nn.Module):
    """ConfigurableGPT, pre-norm."""

    def __init__(self, s: dict[str, Any]):
        super().__init__()
        self.token_embeddings = nn.Embedding(s["vocab_size"], s["n_embd"])
        self.pos_encoding = None
        if s["position_encoding"] == "learned_absolute":
            self.pos_encoding = nn.Module()
            self.pos_encoding.wpe = nn.Embedding(s["block_size"], s["n_embd"])
        self.blocks = nn.ModuleList(Block(s) for _ in range(s["n_layer"]))
        self.final_norm = Norm(s["normalization"], s["n_embd"], s["norm_eps"])
        self.lm_head = nn.Linear(s["n_embd"], s["vocab_size"], bias=False)
        if s["weight_tying"]:
            self.lm_head.weight = self.token_embeddings.weight

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x = self.token_embeddings(ids_BT)
        if self.pos_encoding is not None:
            x = x + self.pos_encoding.wpe.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.final_norm(x))


class PerHeadGPT(nn.Module):
    """The GPT with one matrix per head and a bias in its head."""

    def __init__(self, s: dict[str, int]):
        super().__init__()
        width, size = s["n_embed"], s["context_length"]
        self.token_embed = nn.Embedding(s["vocab_size"], width)
        self.position_embed = nn.Embedding(size, width)
        self.attn_blocks = nn.ModuleList()
        for _ in range(s["n_blocks"]):
            block = nn.Module()
            block.ln1, block.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.heads = nn.ModuleList(nn.Module() for _ in range(s["n_head"]))
            for head in block.attn.heads:
                head.register_buffer("tril", torch.ones(size, size).tril())
                for name in ("key", "query", "value"):
                    setattr(head, name, nn.Linear(width, width // s["n_head"], bias=False))
            block.attn.proj = nn.Linear(width, width)
            block.mlp.hidden, block.mlp.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.attn_blocks.append(block)
        self.layer_norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, s["vocab_size"])
        self.register_buffer("pos_idxs", torch.arange(size))

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x = self.token_embed(ids_BT) + self.position_embed.weight[: ids_BT.shape[1]]
        for block in self.attn_blocks:
            normed = block.ln1(x)
            each = [
                attended(*(getattr(head, name)(normed)[:, None] for name in ("query", "key", "value")))
                for head in block.attn.heads
            ]
            x = x + block.attn.proj(torch.cat(each, dim=-1))
            x = x + block.mlp.proj(block.mlp.hidden(block.ln2(x)).relu())
        return self.lm_head(self.layer_norm(x))


class SimpleLlama(nn.Module):
    """The LLaMA whose queries, keys and values stand in one matrix, head by head."""

    def __init__(self, s: dict[str, Any], vocab_size: int):
        super().__init__()
        self.s, width = s, s["n_embd"]
        hidden = s["multiple_of"] * -(-(8 * width // 3) // s["multiple_of"])
        self.embeddings = nn.Embedding(vocab_size, width)
        self.decoder_blocks = nn.ModuleList()
        for _ in range(s["n_layers"]):
            block = nn.Module()
            block.norm1, block.norm2 = Norm("rmsnorm", width, s["eps"]), Norm("rmsnorm", width, s["eps"])
            block.attention, block.ffwd = nn.Module(), nn.Module()
            block.attention.qkv_linear = nn.Linear(width, 3 * width, bias=False)
            block.attention.out = nn.Linear(width, width, bias=False)
            block.ffwd.w1, block.ffwd.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
            block.ffwd.w2 = nn.Linear(hidden, width, bias=False)
            self.decoder_blocks.append(block)
        self.norm = Norm("rmsnorm", width, s["eps"])
        self.final_linear = nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(ids_BT)
        for block in self.decoder_blocks:
            q, k, v = heads(block.attention.qkv_linear(block.norm1(x)), self.s["n_heads"]).chunk(3, dim=-1)
            q, k = rotated(q, self.s["theta"]), rotated(k, self.s["theta"])
            x = x + block.attention.out(attended(q, k, v))
            normed = block.norm2(x)
            x = x + block.ffwd.w2(F.silu(block.ffwd.w1(normed)) * block.ffwd.w3(normed))
        return self.final_linear(self.norm(x))


def configurable_file(path: Path, *, prefix: str = "", **settings: Any) -> ConfigurableGPT:
    """Writes a ConfigurableGPT's checkpoint; returns the model."""
    chosen = {**CONFIGURABLE, **settings}
    torch.manual_seed(0)
    model = ConfigurableGPT(chosen)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    content = {"model": state, "optimizer": {}, "model_args": chosen, "iter_num": 7, "best_val_loss": 2.5}
    torch.save({**content, "config": {}}, path)
    return model


def per_head_file(path: Path, *, prefix: str = "", **settings: int) -> PerHeadGPT:
    """Writes a per-head GPT's checkpoint; returns the model."""
    chosen = {**PER_HEAD, **settings}
    torch.manual_seed(0)
    model = PerHeadGPT(chosen)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"model_state_dict": state, "stage": "pretrain", "cfg": chosen, "step": 7}, path)
    return model


def simple_file(path: Path, *, vocab_size: int = 330, **settings: Any) -> SimpleLlama:
    """Writes a simple LLaMA's checkpoint, with its pickled config object; returns the model."""
    chosen = {**SIMPLE, **settings}
    torch.manual_seed(0)
    model = SimpleLlama(chosen, vocab_size)
    save_torch_file(
        path, {"model_state_dict": model.state_dict(), "config": StoredObject(CONFIG_CLASS, chosen)}
    )
    return model
