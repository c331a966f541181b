"""Recomputing: what of a layer the backward pass computes a second time instead of keeping it.

It costs time, saves memory and changes no bit (Chen et al. 2016; some of a layer: Korthikanti et al. 2022).
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["nothing", "elementwise", "all-but-attention", "all"]
LADDER: tuple[Recompute, ...] = get_args(Recompute)

Context = contextlib.AbstractContextManager[object]

_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)
# Not the grouped products of experts, to which some families add in place.
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
_KEPT: dict[Recompute, tuple[str, ...]] = {
    "elementwise": (*_ATTENTION, *_PRODUCTS),
    "all-but-attention": _ATTENTION,
}


def recompute_layers(
    layers: Sequence[nn.Module], recompute: Recompute, *, again: Callable[[], Context]
) -> None:
    """From now on the layers keep less in training mode; called again, it replaces what was set before.

    recompute: nothing; elementwise: all but attention and the matrix products that are not of experts;
               all-but-attention; all: the layer's input alone is kept.
    again:     called in the forward pass, returns the context in which the layer is computed again, where
               the forward pass depends on one that has ended by then.
    """
    for layer in layers:
        layer.__dict__.pop("forward", None)
        if recompute != "nothing":
            layer.forward = partial(_forward, layer, partial(_contexts, recompute, again))


def _forward(
    layer: nn.Module, contexts: Callable[[], tuple[Context, Context]], *args: Any, **kwargs: Any
) -> Any:
    forward = partial(type(layer).forward, layer, **kwargs)
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*args)
    # Nothing draws random numbers: dropout hashes its masks.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _contexts(recompute: Recompute, again: Callable[[], Context]) -> tuple[Context, Context]:
    """Those of the forward pass and of its repetition."""
    if recompute == "all":
        return contextlib.nullcontext(), again()
    keeping, using = create_selective_checkpoint_contexts(partial(_policy, _KEPT[recompute]))
    return keeping, _both(again(), using)


def _policy(kept: tuple[str, ...], _: object, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_kept = op.name().partition(".")[0] in kept
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _both(first: Context, second: Context) -> Any:
    with first, second:
        yield
