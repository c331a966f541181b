"""How layers compute in training: what the backward pass computes a second time instead of keeping it.

It costs time, saves memory and changes no bit (Chen et al. 2016; some of a layer: Korthikanti et al. 2022).
Layers that are compiled settle by themselves which cheap results they compute again.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from finetooth.model.compiling import compiled_forward

Recompute = Literal["nothing", "elementwise", "all-but-attention", "all"]
LADDER: tuple[Recompute, ...] = get_args(Recompute)
# What a graph computes inside cannot be told apart from outside.
LADDER_OF_COMPILED: tuple[Recompute, ...] = ("nothing", "all")

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


def set_forward(
    layers: Sequence[nn.Module],
    recompute: Recompute,
    *,
    again: Callable[[], Context],
    compiled: bool = False,
) -> None:
    """From now on the layers compute so in training mode; called again, it replaces what was set before.

    recompute: nothing; elementwise: all but attention and the matrix products that are not of experts;
               all-but-attention; all: the layer's input alone is kept.
    again:     called in the forward pass, returns the context in which the layer is computed again, where
               the forward pass depends on one that has ended by then.
    compiled:  whether each layer is one compiled graph, which can recompute nothing or all.
    """
    assert not compiled or recompute in LADDER_OF_COMPILED, "the config's validation refuses it"
    for layer in layers:
        layer.__dict__.pop("forward", None)
        if recompute == "nothing" and not compiled:
            continue
        plain = type(layer).forward
        trained = compiled_forward(plain) if compiled else plain
        if recompute != "nothing":
            trained = partial(_recomputing, trained, partial(_contexts, recompute, again))
        layer.forward = partial(_forward, layer, plain, trained)


def _forward(
    layer: nn.Module, plain: Callable[..., Any], trained: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    chosen = trained if layer.training and torch.is_grad_enabled() else plain
    return chosen(layer, *args, **kwargs)


def _recomputing(
    forward: Callable[..., Any],
    contexts: Callable[[], tuple[Context, Context]],
    layer: nn.Module,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # Nothing draws random numbers: dropout hashes its masks.
    return checkpoint(
        partial(forward, layer, **kwargs),
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=contexts,
    )


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
