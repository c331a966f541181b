"""The losses of train and dev in detail: over all, by source, and by record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetooth.base.devices import DeviceManager
from finetooth.batching.packing import layout_of
from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Split
from finetooth.data.preparation import PreparedData
from finetooth.data.subset import Subset
from finetooth.evaluation.dev_loss import sample_documents
from finetooth.evaluation.document_losses import DocumentLosses, highest_losses, measure_documents
from finetooth.model.policy import PolicyModel


@dataclass(frozen=True, slots=True)
class SplitLosses:
    """What was measured of a split.

    numbers: int64, the documents whose loss counts, as often as each counts
    losses:  those of these documents, and of all others where all were asked for
    sources: the documents of each source, by its path; in the order of the settings
    """

    split: Split
    numbers: np.ndarray
    losses: DocumentLosses
    sources: dict[str, np.ndarray]

    def figures(self) -> dict[str, Any]:
        """dev_loss, dev_perplexity and, of several sources, dev_loss_by_source, dev_perplexity_by_source."""
        whole = self.losses.over(self.numbers)
        figures: dict[str, Any] = {
            f"{self.split}_loss": whole.loss,
            f"{self.split}_perplexity": whole.perplexity,
        }
        if len(self.sources) < 2:
            return figures
        parts = {path: self.numbers[np.isin(self.numbers, of)] for path, of in self.sources.items()}
        measured = {path: self.losses.over(numbers) for path, numbers in parts.items() if len(numbers)}
        return figures | {
            f"{self.split}_loss_by_source": {path: part.loss for path, part in measured.items()},
            f"{self.split}_perplexity_by_source": {path: part.perplexity for path, part in measured.items()},
        }

    def highest(self, most: int) -> list[dict[str, Any]]:
        """The records with the highest loss: [{"origin": "a.jsonl:17", "loss": 9.1, "num_targets": 2}, …]."""
        return [
            {"origin": record.origin, "loss": record.loss, "num_targets": record.num_targets}
            for record in highest_losses(self.losses, most=most)
        ]


def measure_splits(
    policy: PolicyModel,
    prepared: PreparedData,
    config: SFTConfig,
    *,
    devices: DeviceManager,
    whole_train: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> dict[Split, SplitLosses]:
    """Measures the fixed sample of train on which train_loss is told, and all of dev.

    whole_train: measures all other documents of train as well.
    on_progress: called with the number of documents measured since the last call, and that of all.
    """
    layout = layout_of(config.training, can_pack=policy.why_not_packed is None)
    sample = _stored(prepared, config)
    wanted: dict[Split, tuple[np.ndarray, np.ndarray]] = {
        "train": (sample, np.arange(prepared.train.num_documents) if whole_train else sample)
    }
    if prepared.dev is not None:
        everything = np.arange(prepared.dev.num_documents)
        wanted["dev"] = (everything, everything)
    num_documents = sum(len(np.unique(measured)) for _, measured in wanted.values())
    losses: dict[Split, SplitLosses] = {}
    for split, (numbers, measured) in wanted.items():
        store = prepared.train if split == "train" else prepared.dev
        assert store is not None, "only what is there is wanted"
        found = measure_documents(
            policy,
            store,
            numbers=measured,
            layout=layout,
            devices=devices,
            on_progress=None if on_progress is None else lambda num: on_progress(num, num_documents),
        )
        losses[split] = SplitLosses(split, numbers, found, prepared.documents_by_source(split))
    return losses


def _stored(prepared: PreparedData, config: SFTConfig) -> np.ndarray:
    """The fixed sample of the documents of training, where repeated ones count again, as numbers in train."""
    documents = prepared.train_documents
    limit, seed = config.evaluation.train_documents, config.training.seed
    numbers = sample_documents(documents, limit, seed=seed)
    return documents.numbers[numbers] if isinstance(documents, Subset) else numbers
