"""Guards of the loop: which documents made a step non-finite, and which stand behind a spike of the loss."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import NonFiniteError, problem
from finetooth.batching.collate import collate
from finetooth.data.records import DocumentSource
from finetooth.model.policy import PolicyModel

SHOWN_DOCUMENTS = 10
# Skipping more steps than this hides that a run goes wrong.
MOST_SKIPPED = 10
# The losses that a step is held against, and from how many on; a spike lies so many robust standard
# deviations (1.4826 · median absolute deviation) above their median, and a tenth of it at least.
REMEMBERED_LOSSES = 100
FEWEST_LOSSES = 20
SPIKE_DEVIATIONS = 6.0
SMALLEST_SPIKE = 0.1
SPIKE_DOCUMENTS = 3


def blame_documents(
    policy: PolicyModel, documents: DocumentSource, *, numbers: Sequence[int], devices: DeviceManager
) -> str:
    """A sentence that names the documents whose own loss is not finite.

    Where each is finite alone it names all of them, and says that they are not to blame.

    numbers: the documents of the step, each of which is computed alone once more.
    """
    losses = _losses_alone(policy, documents, numbers, devices)
    culprits = [number for number, loss in zip(numbers, losses, strict=True) if not math.isfinite(loss)]
    shown = [str(documents.document(number).origin) for number in (culprits or numbers)[:SHOWN_DOCUMENTS]]
    more = len(culprits or numbers) - len(shown)
    listed = ", ".join(shown) + (f" and {more} more" if more else "")
    if culprits:
        return f"documents whose own loss is not finite: {listed}"
    return (
        f"documents of this step: {listed}; each is finite alone, "
        "so the learning rate or the model is to blame"
    )


def require_skippable(error: NonFiniteError, *, on_non_finite: str, num_skipped: int) -> None:
    """Raises the error of a step where the settings do not allow to pass over it, or not any more."""
    if on_non_finite == "stop":
        raise error
    if num_skipped >= MOST_SKIPPED:
        fact = f"{MOST_SKIPPED} steps were skipped before this one"
        remedy = "look at their documents in metrics.jsonl, or lower training.learning_rate"
        raise NonFiniteError([*error.problems, problem("training.on_non_finite", fact, remedy)])


def usual_loss(loss: float, recent: Sequence[float]) -> float | None:
    """The median of the recent losses where this one is a spike above them, else None.

    >>> usual_loss(5.0, [2.0, 2.1, 1.9, 2.0] * 5), usual_loss(2.2, [2.0, 2.1, 1.9, 2.0] * 5)
    (2.0, None)
    """
    if len(recent) < FEWEST_LOSSES:
        return None
    median = statistics.median(recent)
    deviation = 1.4826 * statistics.median(abs(each - median) for each in recent)
    is_spike = loss > median + max(SPIKE_DEVIATIONS * deviation, SMALLEST_SPIKE * abs(median))
    return median if is_spike else None


def highest_losses(
    policy: PolicyModel, documents: DocumentSource, *, numbers: Sequence[int], devices: DeviceManager
) -> list[dict[str, Any]]:
    """The three documents with the highest own loss: [{"origin": "train.jsonl:17", "loss": 9.1}, …]."""
    losses = _losses_alone(policy, documents, numbers, devices)
    highest = sorted(zip(losses, numbers, strict=True), reverse=True)[:SPIKE_DOCUMENTS]
    return [{"origin": str(documents.document(number).origin), "loss": loss} for loss, number in highest]


@torch.no_grad()
def _losses_alone(
    policy: PolicyModel, documents: DocumentSource, numbers: Sequence[int], devices: DeviceManager
) -> list[float]:
    """The mean loss of each document alone; where ranks share the parameters, each must ask for the same."""
    was_training = policy.training
    policy.eval()
    losses: list[float] = []
    for number in numbers:
        with devices.autocast():
            loss_sum = float(policy(collate([(number,)], documents).to(devices.device)))
        losses.append(loss_sum / (float(documents.loss_weight_totals[number]) or 1.0))
    policy.train(was_training)
    return losses
