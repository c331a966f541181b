"""Attention within documents laid end to end: causal, never across a document's border.

Registered with transformers as the attention implementation "finetooth"; the document layout reaches
it through the keyword arguments that every supported backbone passes on to its attention.

Shapes: B rows, T tokens in a row, H query heads, K key/value heads, D head size.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from finetooth.base.errors import ConfigError, problem
from finetooth.batching.collate import DocumentLayout

IMPLEMENTATION = "finetooth"
_VARLEN_HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


def document_attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_layout: DocumentLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of every token to the tokens before it in its own document.

    document_layout: where the documents lie in the flattened rows. A backbone that drops it on the way
                     (StableLM does) cannot keep documents apart: ConfigError.
    scaling:         factor of the scores; default 1/√D.
    sliding_window:  tokens see at most so many tokens, themselves included.
    softcap:         scores s become softcap · tanh(s / softcap) (Gemma 2).
    Returns the attended values [B, T, H, D], and None where other implementations return the weights.
    """
    if document_layout is None:
        fact = "the backbone does not pass the document layout on to its attention"
        raise ConfigError(problem(type(module).__name__, fact, "use another architecture"))
    assert attention_mask is None, "documents are separated by their layout, not by a mask"
    assert dropout == 0.0, "attention dropout is set to 0 when the model is loaded"
    assert kwargs.get("s_aux") is None, "attention sinks are refused when the model is loaded"
    num_rows, num_heads, num_tokens, head_size = query_BHTD.shape
    scale = head_size**-0.5 if scaling is None else scaling
    query, key, value = (_narrowed(_flatten(tensor)) for tensor in (query_BHTD, key_BKTD, value_BKTD))
    window = (
        sliding_window if sliding_window is not None and sliding_window < document_layout.longest else None
    )
    if softcap is None and takes_varlen(query.device, query.dtype):
        out = _varlen(query, key, value, document_layout, scale=scale, window=window)
    else:
        out = _each_document(query, key, value, document_layout, scale=scale, window=window, softcap=softcap)
    return out.reshape(num_rows, num_tokens, num_heads, head_size), None


def takes_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kernel attends within all documents of a row; else each document has a call of its own."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)


AttentionInterface.register(IMPLEMENTATION, document_attention)


def _flatten(tensor_BHTD: torch.Tensor) -> torch.Tensor:
    """[B, H, T, D] → [1, H, B·T, D]; a view where there is one row."""
    if tensor_BHTD.shape[0] == 1:
        return tensor_BHTD
    return tensor_BHTD.transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in autocast's type: norms and rotary factors leave queries and keys in float32."""
    device_type = tensor.device.type
    if not torch.is_autocast_enabled(device_type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: DocumentLayout,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    options: dict[str, Any] = {}
    if query.shape[1] != key.shape[1] and _VARLEN_HAS_GQA:
        options["enable_gqa"] = True
    elif query.shape[1] != key.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    out = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layout.offsets_S1,
        layout.offsets_S1,
        layout.longest,
        layout.longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    assert isinstance(out, torch.Tensor)
    return out


# A compiled layer would be compiled anew for each lengths of documents.
@torch.compiler.disable()
def _each_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: DocumentLayout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    # split, not slices: its backward is one concatenation instead of a zero-filled tensor per document
    pieces = zip(*(tensor.split(layout.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    attended = []
    for query_piece, key_piece, value_piece in pieces:
        if softcap is not None:
            piece = _soft_capped(
                query_piece, key_piece, value_piece, scale=scale, window=window, softcap=softcap
            )
        else:
            mask = _window_mask(query_piece, window)
            piece = F.scaled_dot_product_attention(
                query_piece,
                key_piece,
                value_piece,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        attended.append(piece.transpose(1, 2))
    return torch.cat(attended, dim=1)


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """True where a token may look, for documents longer than the sliding window; else None."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    return _visible(length, window, query.device)


def _visible(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() if window is None else ones.tril().triu(1 - window)


def _soft_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float,
) -> torch.Tensor:
    """Soft-capped attention written out, since no fused kernel for training knows it."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = torch.tanh(query @ key.transpose(2, 3) * (scale / softcap)) * softcap
    hidden = ~_visible(query.shape[2], window, query.device)
    wide = torch.promote_types(query.dtype, torch.float32)
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1, dtype=wide).to(query.dtype) @ value
