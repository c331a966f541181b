"""Guards of the loop: which documents made a step non-finite."""

import math
from collections.abc import Sequence

import torch

from finetooth.base.devices import DeviceManager
from finetooth.batching.collate import collate
from finetooth.data.records import DocumentSource
from finetooth.model.policy import PolicyModel

SHOWN_DOCUMENTS = 10


@torch.no_grad()
def blame_documents(
    policy: PolicyModel, documents: DocumentSource, *, numbers: Sequence[int], devices: DeviceManager
) -> str:
    """A sentence that names the documents whose own loss is not finite.

    Where each is finite alone it names all of them, and says that they are not to blame.

    numbers: the documents of the step, each of which is computed alone once more.
    """
    culprits: list[int] = []
    for number in numbers:
        with devices.autocast():
            loss = float(policy(collate([(number,)], documents).to(devices.device)))
        if not math.isfinite(loss):
            culprits.append(number)
    shown = [str(documents.document(number).origin) for number in (culprits or numbers)[:SHOWN_DOCUMENTS]]
    more = len(culprits or numbers) - len(shown)
    listed = ", ".join(shown) + (f" and {more} more" if more else "")
    if culprits:
        return f"documents whose own loss is not finite: {listed}"
    return (
        f"documents of this step: {listed}; each is finite alone, "
        "so the learning rate or the model is to blame"
    )
