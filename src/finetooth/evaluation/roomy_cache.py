"""A cache of keys and values with room ahead: a token is written into its place, and nothing is copied."""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 64  # tokens


class RoomyLayer(DynamicLayer):
    """transformers' layer for full attention, which it copies whole for every token."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes keys and values [B, H, T, D] of new tokens; returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._held is None or after > self._held[0].shape[-2]:
            self._held = (
                self._with_room(self.keys, key_states, after),
                self._with_room(self.values, value_states, after),
            )
        for held, states in zip(self._held, (key_states, value_states), strict=True):
            held[:, :, before:after] = states
        self.keys, self.values = (held[:, :, :after] for held in self._held)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keeps these rows."""
        super().reorder_cache(beam_idx)
        self._held = None

    @staticmethod
    def _with_room(filled: torch.Tensor | None, states: torch.Tensor, length: int) -> torch.Tensor:
        num_rows, num_heads, _, width = states.shape
        held = states.new_empty((num_rows, num_heads, length + _ROOM, width))
        if filled is not None and filled.numel():
            held[:, :, : filled.shape[-2]] = filled
        return held


def roomy_cache(model: PreTrainedModel) -> DynamicCache | None:
    """An empty cache for a model from which rows can be taken; None where its layers keep something else."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
