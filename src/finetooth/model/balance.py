"""The auxiliary loss of a mixture of experts, which keeps its tokens spread evenly over the experts.

Shapes: B rows, T tokens in a row, E experts, N targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetooth.batching.collate import Batch


@dataclass(frozen=True, slots=True)
class Balance:
    """What a model's own config asks for.

    coefficient: the factor of the auxiliary loss, `router_aux_loss_coef`
    num_chosen:  how many experts compute each token
    """

    coefficient: float
    num_chosen: int


def balance_of(config: Any) -> Balance | None:
    """None where `output_router_logits` is not set: then transformers adds no auxiliary loss either.

    That it is computed as here is proved when a model is loaded, by `settle_packing`.
    """
    coefficient = getattr(config, "router_aux_loss_coef", None)
    if not getattr(config, "output_router_logits", False) or not coefficient:
        return None
    return Balance(float(coefficient), getattr(config, "num_experts_per_tok", 1))


def balance_loss(router_logits: Sequence[torch.Tensor], batch: Batch, balance: Balance) -> torch.Tensor:
    """Σ over rows: coefficient · auxiliary loss of the row · loss weight of the row; a scalar, float32.

    router_logits: of each layer, [B·T, E] or [B, T, E].
    Divided by the step's total loss weight, it is the mean over all targets of the auxiliary loss of the
    row in which each stands. That of a row is E · Σ_e f_e · p_e, with f_e the share of choices that fall on
    expert e, counted per token, and p_e its mean probability, over all layers and all tokens that are no
    padding (Fedus et al. 2021, equations 4 to 6, as in transformers). So it depends on which documents share
    a row.
    """
    is_real_BT1 = _is_real(batch.positions_BT)[..., None]
    num_rows, num_tokens = batch.positions_BT.shape
    counts_BE = probabilities_BE = torch.zeros((), device=is_real_BT1.device)
    for logits in router_logits:
        probabilities_BTE = logits.reshape(num_rows, num_tokens, -1).float().softmax(dim=-1)
        chosen_BTK = probabilities_BTE.topk(balance.num_chosen, dim=-1).indices
        is_chosen_BTE = torch.zeros_like(probabilities_BTE).scatter_(2, chosen_BTK, 1.0)
        counts_BE = counts_BE + (is_chosen_BTE * is_real_BT1).sum(dim=1)
        probabilities_BE = probabilities_BE + (probabilities_BTE * is_real_BT1).sum(dim=1)
    num_seen_B = (is_real_BT1.sum(dim=(1, 2)) * len(router_logits)).clamp(min=1)
    num_experts = counts_BE.shape[-1]
    losses_B = num_experts * (counts_BE * probabilities_BE).sum(dim=-1) / num_seen_B**2
    weights_B = torch.zeros_like(losses_B)
    weights_B.index_add_(0, batch.target_sources_N // num_tokens, batch.loss_weights_N.to(losses_B.dtype))
    return balance.coefficient * (losses_B * weights_B).sum()


def _is_real(positions_BT: torch.Tensor) -> torch.Tensor:
    """Whether a token is no padding, bool [B, T]: all padding has position 0, and nothing goes on from it.

    A document of one token looks like padding; it has no target.
    """
    following_BT = torch.nn.functional.pad(positions_BT[:, 1:], (0, 1))
    return (positions_BT > 0) | (following_BT == 1)
