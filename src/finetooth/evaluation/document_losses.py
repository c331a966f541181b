"""The loss of each document, computed many at a time; and the records whose loss is the highest."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import collate
from finetooth.batching.packing import Layout, forward_passes, lay_out
from finetooth.data.records import DocumentSource
from finetooth.evaluation.dev_loss import MeasuredLoss, require_finite
from finetooth.model.policy import PolicyModel


@dataclass(frozen=True, slots=True)
class DocumentLosses:
    """The loss sums of some documents.

    documents: where they stand
    numbers:   int64 [S], which of them were measured, rising
    loss_sums: float64 [number of documents], Σ loss weight · cross-entropy; of the others it has no meaning
    """

    documents: DocumentSource
    numbers: np.ndarray
    loss_sums: np.ndarray

    def over(self, numbers: Sequence[int] | np.ndarray) -> MeasuredLoss:
        """The loss of several of them together, each as often as it is named: one sum, divided once."""
        numbers = np.asarray(numbers, dtype=np.int64)
        total_loss_weight = float(self.documents.loss_weight_totals[numbers].sum())
        return MeasuredLoss(float(self.loss_sums[numbers].sum()) / total_loss_weight, total_loss_weight)


@dataclass(frozen=True, slots=True)
class RecordLoss:
    """The loss of a record, over the targets of all its documents, whose numbers these are."""

    origin: str
    loss: float
    num_targets: int
    documents: tuple[int, ...]


@torch.no_grad()
def measure_documents(
    policy: PolicyModel,
    documents: DocumentSource,
    *,
    numbers: Sequence[int] | np.ndarray,
    layout: Layout,
    devices: DeviceManager,
    on_progress: Callable[[int], object] | None = None,
) -> DocumentLosses:
    """Measures each document with one of these numbers, on one process.

    layout: changes speed only. on_progress: called with the number of documents measured since the last call.
    The policy is left in the mode (train or eval) it was in.
    Raises NonFiniteError where a loss is infinite or not a number.
    """
    measured = np.unique(np.asarray(numbers, dtype=np.int64))
    loss_sums = np.zeros(len(documents.lengths))
    (rows,) = lay_out(measured, documents.lengths[measured], layout=layout)
    was_training = policy.training
    policy.eval()
    try:
        for row_group in forward_passes(rows, layout.rows_at_once):
            batch = collate(row_group, documents)
            with devices.autocast():
                losses_N = policy.target_losses(batch.to(devices.device)).cpu()
            weighted = losses_N.double().numpy() * batch.loss_weights_N.double().numpy()
            # The targets lie in the order of the documents.
            owners = np.repeat(batch.documents, documents.num_targets[list(batch.documents)])
            np.add.at(loss_sums, owners, weighted)
            if on_progress is not None:
                on_progress(len(batch.documents))
    finally:
        policy.train(was_training)
    require_finite(float(loss_sums.sum()))
    return DocumentLosses(documents, measured, loss_sums)


def highest_losses(losses: DocumentLosses, *, most: int) -> list[RecordLoss]:
    """The records with the highest mean loss per target, highest first; of equal ones the first."""
    return heapq.nlargest(most, record_losses(losses), key=lambda record: record.loss)


def record_losses(losses: DocumentLosses) -> Iterator[RecordLoss]:
    """The mean loss per target of each record, in the order of their first documents.

    The mean is by loss weights, as everywhere. Records without a target have none.
    """
    by_origin: dict[str, list[int]] = {}
    for number in losses.numbers.tolist():
        if losses.documents.num_targets[number]:
            by_origin.setdefault(str(losses.documents.document(number).origin), []).append(number)
    for origin, numbers in by_origin.items():
        yield RecordLoss(
            origin=origin,
            loss=losses.over(numbers).loss,
            num_targets=int(losses.documents.num_targets[numbers].sum()),
            documents=tuple(numbers),
        )
