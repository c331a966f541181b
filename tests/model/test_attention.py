"""Attention within documents equals dense masked attention, and nothing crosses a document's border."""

import math

import pytest
import torch

from finetooth.base.errors import ConfigError
from finetooth.batching.collate import DocumentLayout
from finetooth.model import attention
from finetooth.model.attention import document_attention


def make_layout(lengths: tuple[int, ...]) -> DocumentLayout:
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return DocumentLayout(lengths, offsets, max(lengths))


def dense_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """One dense mask over all B·T tokens, in the textbook order of operations; returns [B, T, H, D]."""
    num_rows, num_heads, num_tokens, head_size = query.shape
    repeats = num_heads // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    flat = [tensor.permute(1, 0, 2, 3).reshape(num_heads, -1, head_size) for tensor in (query, key, value)]
    scores = flat[0] @ flat[1].mT / math.sqrt(head_size)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    visible = (document[:, None] == document[None, :]) & (place[:, None] >= place[None, :])
    if window is not None:
        visible &= place[:, None] - place[None, :] < window
    out = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ flat[2]
    return out.reshape(num_heads, num_rows, num_tokens, head_size).permute(1, 2, 0, 3)


def draw(num_rows: int, num_tokens: int, *, heads: int = 4, groups: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_rows, count, num_tokens, 8) for count in (heads, groups, groups)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize(
    ("num_rows", "lengths"), [(1, (5, 1, 9, 3)), (2, (5, 4, 1, 8)), (3, (7, 7, 7)), (1, (1,))]
)
def test_attention_and_gradients_equal_the_dense_reference(
    num_rows: int, lengths: tuple[int, ...], window: int | None, softcap: float | None
):
    inputs = draw(num_rows, sum(lengths) // num_rows)
    out, _ = document_attention(
        torch.nn.Identity(),
        *inputs,
        None,
        document_layout=make_layout(lengths),
        sliding_window=window,
        softcap=softcap,
    )
    expected = dense_reference(*inputs, lengths, window=window, softcap=softcap)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(out.shape, dtype=out.dtype)
    ours = torch.autograd.grad((out * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_changing_one_document_leaves_every_other_bit_as_it_was():
    inputs, layout = draw(1, 18), make_layout((5, 9, 4))
    before, _ = document_attention(torch.nn.Identity(), *inputs, None, document_layout=layout)
    with torch.no_grad():
        for tensor in inputs:
            tensor[:, :, 5:14] += 1.0
    after, _ = document_attention(torch.nn.Identity(), *inputs, None, document_layout=layout)
    assert torch.equal(before[:, :5], after[:, :5])
    assert torch.equal(before[:, 14:], after[:, 14:])
    assert not torch.equal(before[:, 5:14], after[:, 5:14])


def test_the_reference_notices_a_leak():
    """Negative control: one long document where two should be differs from the reference."""
    inputs = draw(1, 10)
    leaking, _ = document_attention(torch.nn.Identity(), *inputs, None, document_layout=make_layout((10,)))
    expected = dense_reference(*inputs, (5, 5))
    assert (leaking[:, 5:] - expected[:, 5:]).norm() / expected.norm() > 0.1


def test_a_backbone_that_drops_the_layout_is_refused():
    with pytest.raises(ConfigError) as caught:
        document_attention(torch.nn.Identity(), *draw(1, 3), None)
    assert str(caught.value) == (
        "Identity: the backbone does not pass the document layout on to its attention; "
        "use another architecture"
    )


def many_documents_kernel(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `varlen_attn`'s documentation says, written out; it has no CPU implementation."""
    assert offsets.dtype == torch.int32
    assert torch.equal(offsets, key_offsets)
    assert longest == longest_key == offsets.diff().max()
    assert window_size[1] == 0, "causal"
    if enable_gqa:
        repeats = query_THD.shape[1] // key_TKD.shape[1]
        key_TKD, value_TKD = (tensor.repeat_interleave(repeats, 1) for tensor in (key_TKD, value_TKD))
    out = torch.empty_like(query_THD)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query_THD[start:end], key_TKD[start:end]) * scale
        place = torch.arange(end - start)
        behind = place[:, None] - place[None, :]
        visible = behind >= 0
        if window_size[0] >= 0:
            visible &= behind <= window_size[0]
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", weights, value_TKD[start:end])
    return out


@pytest.mark.parametrize("has_gqa", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("num_rows", "lengths"), [(1, (5, 1, 9, 3)), (2, (5, 4, 1, 8))])
def test_the_gpu_kernel_is_given_what_its_documentation_asks_for(
    monkeypatch: pytest.MonkeyPatch,
    num_rows: int,
    lengths: tuple[int, ...],
    window: int | None,
    has_gqa: bool,
):
    monkeypatch.setattr(attention, "varlen_attn", many_documents_kernel)
    monkeypatch.setattr(attention, "_VARLEN_HAS_GQA", has_gqa)
    monkeypatch.setattr(attention, "takes_varlen", lambda *_: True)
    inputs = draw(num_rows, sum(lengths) // num_rows)
    out, _ = document_attention(
        torch.nn.Identity(), *inputs, None, document_layout=make_layout(lengths), sliding_window=window
    )
    torch.testing.assert_close(out, dense_reference(*inputs, lengths, window=window), rtol=1e-12, atol=1e-12)


def test_queries_and_keys_take_autocasts_type():
    inputs = [tensor.detach().float() for tensor in draw(1, 8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = document_attention(torch.nn.Identity(), *inputs, None, document_layout=make_layout((8,)))
    assert out.dtype == torch.bfloat16
