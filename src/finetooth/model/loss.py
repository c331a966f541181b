"""Cross-entropy as a weighted sum over target positions, in float32, without ever holding all logits.

Shapes: B rows, T tokens in a row, N targets, D hidden, V vocabulary, R trained rows of a frozen
head.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from finetooth.model.head_chunks import chunk_rows


def sft_loss(
    logits_BTV: torch.Tensor, token_ids_BT: torch.Tensor, loss_weights_BT: torch.Tensor
) -> torch.Tensor:
    """The plain reference: next-token cross-entropy, averaged over the targets by their loss weights.

    logits_BTV: any float type; token_ids_BT: int; loss_weights_BT: float, the weight of predicting each
    token from those before it (the first column has no meaning, as nothing predicts it).
    Returns a scalar: Σ w·(−log p) / Σ w, 0 where nothing is a target. The shift is made inside.
    """
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)
    logits = logits_BTV[:, :-1].to(wide).flatten(0, 1)
    losses = F.cross_entropy(logits, token_ids_BT[:, 1:].flatten().long(), reduction="none")
    weights = loss_weights_BT[:, 1:].flatten().to(wide)
    total = weights.sum()
    return (losses * weights).sum() / torch.where(total == 0, 1, total)


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to its logits after the head: logits · scale, then soft-capping.

    soft_cap: logits z become soft_cap · tanh(z / soft_cap) (Gemma 2).
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The transformed logits."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits

    def backpropagate(self, gradient: torch.Tensor, transformed: torch.Tensor) -> torch.Tensor:
        """The gradient before the transform, from the gradient after it and the transformed logits."""
        if self.soft_cap is not None:
            gradient = gradient * (1 - (transformed / self.soft_cap) ** 2)
        return gradient * self.scale if self.scale != 1.0 else gradient


@dataclass(frozen=True, slots=True)
class TrainedRows:
    """Rows that stand in for those of a frozen head, as an adapter trains them.

    numbers_R: int64, which rows; values_RD: their values.
    """

    numbers_R: torch.Tensor
    values_RD: torch.Tensor


def head_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    loss_weights_N: torch.Tensor,
    *,
    rows: TrainedRows | None = None,
    transform: LogitTransform | None = None,
    gradient_scale: float = 1.0,
) -> torch.Tensor:
    """The weighted sum of the targets' cross-entropies, straight from the hidden states.

    hidden_ND: the hidden state each target is predicted from; weight_VD, bias_V: the head;
    rows: replace some of the head's, whose gradient alone is then taken;
    gradient_scale: the factor the caller will multiply the loss by before `backward` (fp16's loss
    scale); it enters here because gradients are taken in the forward pass, in the compute type.
    Returns a scalar, float32 (float64 for float64 inputs). Without targets it is 0 and stays attached
    to the graph.
    """
    options = _Options(
        transform=transform or LogitTransform(),
        gradient_scale=gradient_scale,
        compute_dtype=_compute_dtype(hidden_ND),
        take_gradients=torch.is_grad_enabled(),
        row_numbers_R=None if rows is None else rows.numbers_R,
    )
    rows_RD = None if rows is None else rows.values_RD
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _HeadLoss.apply(hidden_ND, weight_VD, bias_V, rows_RD, targets_N, loss_weights_N, options)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def target_losses(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    *,
    rows: TrainedRows | None = None,
    transform: LogitTransform | None = None,
) -> torch.Tensor:
    """The cross-entropy of each target, of which `head_loss` gives the weighted sum; no gradients.

    Returns float32 [N] (float64 for float64 inputs).
    """
    options = _Options(
        transform=transform or LogitTransform(),
        gradient_scale=1.0,
        compute_dtype=_compute_dtype(hidden_ND),
        take_gradients=False,
        row_numbers_R=None if rows is None else rows.numbers_R,
    )
    narrow_weight_VD = _narrow_weight(weight_VD, None if rows is None else rows.values_RD, options)
    num_at_once = chunk_rows(weight_VD.shape[0], hidden_ND.device.type)
    wide = torch.promote_types(options.compute_dtype, torch.float32)
    losses_N = torch.empty(len(targets_N), dtype=wide, device=hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, len(targets_N), num_at_once):
            chunk = slice(start, start + num_at_once)
            narrow_hidden_ND = hidden_ND[chunk].to(options.compute_dtype)
            losses_N1, _ = _chunk(narrow_hidden_ND, narrow_weight_VD, bias_V, targets_N[chunk], options)
            losses_N[chunk] = losses_N1.squeeze(1)
    return losses_N


def _compute_dtype(hidden_ND: torch.Tensor) -> torch.dtype:
    device_type = hidden_ND.device.type
    under_autocast = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if under_autocast else hidden_ND.dtype


@dataclass(frozen=True, slots=True)
class _Options:
    transform: LogitTransform
    gradient_scale: float
    compute_dtype: torch.dtype
    take_gradients: bool
    row_numbers_R: torch.Tensor | None


class _HeadLoss(torch.autograd.Function):
    """Takes the gradients chunk by chunk in the forward pass, so that logits are computed only once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        rows_RD: torch.Tensor | None,
        targets_N: torch.Tensor,
        loss_weights_N: torch.Tensor,
        options: _Options,
    ) -> torch.Tensor:
        wide = torch.promote_types(options.compute_dtype, torch.float32)
        wants_hidden, wants_weight, wants_bias, wants_rows = (
            wanted and options.take_gradients for wanted in ctx.needs_input_grad[:4]
        )
        # Casting here rather than outside lets the gradient of the head leave in its accumulation type.
        narrow_weight_VD = _narrow_weight(weight_VD, rows_RD, options)
        hidden_gradient = torch.zeros_like(hidden_ND) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=wide) if wants_bias and bias_V is not None else None
        rows_gradient = torch.zeros_like(rows_RD, dtype=wide) if wants_rows and rows_RD is not None else None
        loss_sum = torch.zeros((), dtype=wide, device=hidden_ND.device)
        num_at_once = chunk_rows(weight_VD.shape[0], hidden_ND.device.type)
        for start in range(0, len(targets_N), num_at_once):
            rows = slice(start, start + num_at_once)
            narrow_hidden_ND = hidden_ND[rows].to(options.compute_dtype)
            weights_N1 = loss_weights_N[rows, None].to(wide)
            losses_N1, gradient_NV = _chunk(
                narrow_hidden_ND, narrow_weight_VD, bias_V, targets_N[rows], options
            )
            loss_sum += (losses_N1 * weights_N1).sum()
            if gradient_NV is None:
                continue
            # Weights and scale go to the small factors of each product, which saves a pass over [N, V].
            factor_N1 = weights_N1 * options.gradient_scale
            if bias_gradient is not None:
                bias_gradient += (gradient_NV.T @ factor_N1).squeeze(1)
            gradient_NV = gradient_NV.to(options.compute_dtype)
            if hidden_gradient is not None:
                hidden_gradient[rows] = (gradient_NV @ narrow_weight_VD) * factor_N1
            scaled_ND = (narrow_hidden_ND * factor_N1).to(options.compute_dtype)
            if weight_gradient is not None:
                _add_product(weight_gradient, gradient_NV.T, scaled_ND)
            if rows_gradient is not None:
                _add_product(rows_gradient, gradient_NV[:, options.row_numbers_R].T, scaled_ND)
            del gradient_NV  # before there are the logits of the next chunk
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient, rows_gradient)
        ctx.gradient_scale = options.gradient_scale
        given = (hidden_ND, weight_VD, bias_V, rows_RD)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in given]
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        factor = grad_outputs[0] / ctx.gradient_scale
        gradients = [
            None if gradient is None else (gradient * factor.to(gradient.dtype)).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None


def _narrow_weight(weight_VD: torch.Tensor, rows_RD: torch.Tensor | None, options: _Options) -> torch.Tensor:
    """The head in the compute type, with the trained rows in place of its own."""
    narrow_weight_VD = weight_VD.to(options.compute_dtype)
    if rows_RD is None or options.row_numbers_R is None:
        return narrow_weight_VD
    return narrow_weight_VD.index_copy(0, options.row_numbers_R, rows_RD.to(options.compute_dtype))


def _chunk(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    options: _Options,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The cross-entropy of each target [N, 1] and, if wanted, its gradient by the logits [N, V]."""
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    logits_NV = (hidden_ND @ weight_VD.T).to(wide)
    if bias_V is not None:
        logits_NV += bias_V
    logits_NV = options.transform.apply(logits_NV)
    log_probabilities_NV = torch.log_softmax(logits_NV, dim=-1)
    losses_N1 = -log_probabilities_NV.gather(1, targets_N[:, None])
    if not options.take_gradients:
        return losses_N1, None
    gradient_NV = log_probabilities_NV.exp_()
    gradient_NV.scatter_add_(1, targets_N[:, None], torch.full_like(losses_N1, -1.0))
    return losses_N1, options.transform.backpropagate(gradient_NV, logits_NV)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, accumulated in total's type even where the factors are narrower."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
    elif left.is_cuda:
        total += torch.mm(left, right, out_dtype=total.dtype)
    else:
        total += (left @ right).to(total.dtype)
