"""Loss and perplexity of documents: one sum over all their targets, divided once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import NonFiniteError, problem
from finetooth.batching.collate import collate
from finetooth.batching.order import epoch_order
from finetooth.batching.packing import Layout, forward_passes, lay_out, layout_of
from finetooth.config.schema import SFTConfig
from finetooth.data.records import DocumentSource
from finetooth.model.policy import PolicyModel

LARGEST_EXPONENT = 700.0
# An epoch no run reaches: its order picks the fixed samples that evaluations look at.
SAMPLE_EPOCH = 1 << 40


@dataclass(frozen=True, slots=True)
class MeasuredLoss:
    """A loss weighted by the documents' loss weights: the same for every layout."""

    loss: float
    total_loss_weight: float

    @property
    def perplexity(self) -> float:
        """exp(loss), at most exp(700): JSON knows no infinity."""
        return math.exp(min(self.loss, LARGEST_EXPONENT))


def measure_losses(
    policy: PolicyModel,
    *,
    train: DocumentSource,
    dev: DocumentSource | None,
    config: SFTConfig,
    devices: DeviceManager,
    ranks: Ranks = ALONE,
    check: Callable[[], object] | None = None,
) -> dict[str, float]:
    """train_loss on the config's fixed sample, dev_loss on all of dev, and both perplexities.

    check: called before each forward pass, as often on every rank; what it raises ends the measuring.
    """
    figures: dict[str, float] = {}
    layout = layout_of(config.training, can_pack=policy.why_not_packed is None)
    for name, documents, limit in (("train", train, config.evaluation.train_documents), ("dev", dev, None)):
        if documents is not None:
            numbers = sample_documents(documents, limit, seed=config.training.seed)
            measured = measure_loss(
                policy,
                documents,
                numbers=numbers,
                layout=layout,
                devices=devices,
                ranks=ranks,
                check=check,
            )
            figures |= {f"{name}_loss": measured.loss, f"{name}_perplexity": measured.perplexity}
    return figures


def sample_documents(documents: DocumentSource, limit: int | None, *, seed: int) -> np.ndarray:
    """The documents that every evaluation looks at: all, or a fixed sample of `limit`; int64."""
    return epoch_order(len(documents.lengths), seed=seed, epoch=SAMPLE_EPOCH, stop=limit)


@torch.no_grad()
def measure_loss(
    policy: PolicyModel,
    documents: DocumentSource,
    *,
    numbers: Sequence[int] | np.ndarray,
    layout: Layout,
    devices: DeviceManager,
    ranks: Ranks = ALONE,
    check: Callable[[], object] | None = None,
) -> MeasuredLoss:
    """The mean cross-entropy over the targets of the documents with these numbers.

    layout, ranks: change speed only; every rank must ask. The policy is left in the mode (train or eval)
    it was in.
    Raises NonFiniteError where the loss is infinite or not a number.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    rows = lay_out(numbers, documents.lengths[numbers], layout=layout, world_size=ranks.world_size)[
        ranks.rank
    ]
    was_training = policy.training
    policy.eval()
    loss_sum = 0.0
    try:
        for row_group in forward_passes(rows, layout.rows_at_once):
            if check is not None:
                check()
            with devices.autocast():
                loss_sum += float(policy(collate(row_group, documents).to(devices.device)))
    finally:
        policy.train(was_training)
    (loss_sum,) = ranks.sums([loss_sum])
    require_finite(loss_sum)
    total_loss_weight = float(documents.loss_weight_totals[numbers].sum())
    return MeasuredLoss(loss_sum / total_loss_weight, total_loss_weight)


def require_finite(loss_sum: float) -> None:
    """Raises NonFiniteError where a loss is infinite or not a number."""
    if not math.isfinite(loss_sum):
        remedy = "the last updates broke the policy; train again with a lower training.learning_rate"
        raise NonFiniteError(problem("evaluation", f"the loss is {loss_sum}", remedy))
