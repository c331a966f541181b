"""Dropout of residual outputs and of adapters' inputs: in training, some features are zero.

The mask is a hash of (seed, step, document, position in it, place in the model, feature). It is the same
however the documents are laid out, on any device and any number of ranks; no random number generator plays
a part.

Shapes: B rows, T tokens in a row, D hidden, G groups of four features.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from finetooth.base.errors import ConfigError, problem
from finetooth.base.split_mix import GOLDEN, mix

# Names of a layer's attention and feed-forward block in the families that transformers has.
ATTENTION = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer", "temporal_block")
FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe", "mlp_block", "ffn", "ff", "moe", "shared_mlp")
_LEVELS = 1 << 16


# Adapters draw far behind the residual outputs, each from a stretch of its own.
_FIRST_GROUP_OF_ADAPTERS = 1 << 60
_GROUPS_PER_ADAPTER = 1 << 32


class KeyedDropout:
    """Dropout (Srivastava et al. 2014) that acts only within `keyed_by`.

    probability: of a feature being zero, to the nearest 1/65536; the others are scaled up in return.
    keys_BT:     what is drawn from now; None where nothing is dropped.
    """

    def __init__(self, probability: float):
        self.probability = probability
        self.keys_BT: torch.Tensor | None = None

    @contextlib.contextmanager
    def keyed_by(self, keys_BT: torch.Tensor | None) -> Iterator[None]:
        """Within it, modules in training mode drop features by these keys; by None they drop nothing."""
        before, self.keys_BT = self.keys_BT, keys_BT
        try:
            yield
        finally:
            self.keys_BT = before

    def dropped(self, features_BTD: torch.Tensor, first_group: int) -> torch.Tensor:
        """The features, some of them zero; first_group: where the draws begin in each token's stream."""
        if self.keys_BT is None or self.probability == 0:
            return features_BTD
        num_dropped = min(_LEVELS - 1, round(self.probability * _LEVELS))
        bits_BTD = random_bits(self.keys_BT, first_group, features_BTD.shape[-1])
        kept_BTD = bits_BTD >= num_dropped - _LEVELS // 2
        return torch.where(kept_BTD, features_BTD * (_LEVELS / (_LEVELS - num_dropped)), 0)


class ResidualDropout(KeyedDropout):
    """Dropout on the outputs of the layers' blocks, by forward hooks.

    Raises ConfigError where a layer's two blocks cannot be told.
    """

    def __init__(self, layers: Sequence[nn.Module], probability: float):
        super().__init__(probability)
        blocks = [block for layer in layers for block in _blocks_of(layer)]
        for number, block in enumerate(blocks):
            block.register_forward_hook(partial(self._drop, number))

    def _drop(self, number: int, block: nn.Module, inputs: Any, output: Any) -> Any:
        if not block.training:
            return None
        output_BTD = output[0] if isinstance(output, tuple) else output
        dropped_BTD = self.dropped(output_BTD, number * num_groups(output_BTD.shape[-1]))
        return (dropped_BTD, *output[1:]) if isinstance(output, tuple) else dropped_BTD


class AdapterDropout(nn.Module):
    """Dropout on the input of one adapted layer; number: which one of the model."""

    def __init__(self, dropout: KeyedDropout, number: int):
        super().__init__()
        self._dropout = dropout
        self._first_group = _FIRST_GROUP_OF_ADAPTERS + number * _GROUPS_PER_ADAPTER

    def forward(self, features_BTD: torch.Tensor) -> torch.Tensor:
        """The features; in training mode and within `keyed_by`, some of them are zero."""
        return self._dropout.dropped(features_BTD, self._first_group) if self.training else features_BTD


def num_groups(num_features: int) -> int:
    """Groups of four features, each of which takes one number of a stream."""
    return -(-num_features // 4)


def random_bits(keys_BT: torch.Tensor, first_group: int, num_features: int) -> torch.Tensor:
    """Even 16-bit numbers, int16 [B, T, D]: the stream of SplitMix64 that starts at each token's key."""
    counters = first_group + 1 + torch.arange(num_groups(num_features), device=keys_BT.device)
    return mix(keys_BT[..., None] + counters * GOLDEN).view(torch.int16)[..., :num_features]


def _blocks_of(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    children = dict(layer.named_children())
    found = [[children[name] for name in names if name in children] for names in (ATTENTION, FEED_FORWARD)]
    if any(len(blocks) != 1 for blocks in found):
        what = ", ".join(children)
        fact = f"the attention and the feed-forward block of {type(layer).__name__} cannot be told: {what}"
        raise ConfigError(problem("training.dropout", fact, "write 0, or use another architecture"))
    return found[0][0], found[1][0]
