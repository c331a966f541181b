"""Schedule: step → documents → rows → this rank's rows, decided before the first forward pass.

A pure function of (store, settings, seed). Steps count from 1, as finished updates do in the logs.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from finetooth.batching.order import epoch_order, even_boundary, places_in_order, token_boundaries
from finetooth.batching.packing import Layout, Row, lay_out
from finetooth.config.schema import TrainingConfig
from finetooth.data.records import DocumentSource

_DOCUMENTS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser update: a set of documents.

    number:            counts from 1
    epoch:             counts from 0
    documents:         int64 [S], in the epoch's order
    total_loss_weight: what the step's loss sum is divided by, over all ranks
    """

    number: int
    epoch: int
    documents: np.ndarray
    total_loss_weight: float
    num_tokens: int
    num_targets: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """Which documents are trained when.

    lengths:            int64 [S], tokens per document
    loss_weight_totals: float64 [S], the sum of each document's loss weights
    num_targets:        int64 [S], targets per document
    num_epochs:         passes over the documents; the last one may be a part
    max_steps:          takes the place of num_epochs where given
    global_batch_size:  documents per step over all devices
    global_batch_tokens: takes its place where given: about so many tokens per step

    >>> lengths, num_targets = np.array([3, 5, 4]), np.array([1, 2, 2])
    >>> weights = num_targets.astype(float)
    >>> schedule = Schedule(lengths, weights, num_targets, seed=42, num_epochs=2, global_batch_size=2)
    >>> schedule.num_steps, schedule.steps_per_epoch
    (4, 2)
    >>> [step.documents.tolist() for step in schedule.steps()]
    [[2], [0, 1], [0], [1, 2]]
    """

    lengths: np.ndarray
    loss_weight_totals: np.ndarray
    num_targets: np.ndarray
    seed: int
    num_epochs: float = 1
    max_steps: int | None = None
    global_batch_size: int = 1
    global_batch_tokens: int | None = None
    source_fingerprint: str = ""

    def __post_init__(self) -> None:
        assert len(self.lengths) == len(self.loss_weight_totals) > 0, "a schedule needs documents"

    @property
    def num_documents(self) -> int:
        """Documents in one epoch."""
        return len(self.lengths)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Updates in one whole epoch."""
        if self.global_batch_tokens is None:
            return -(-self.num_documents // self.global_batch_size)
        return min(self.num_documents, -(-int(self.lengths.sum()) // self.global_batch_tokens))

    @property
    def num_steps(self) -> int:
        """Updates in the whole run."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, int(np.ceil(self.steps_per_epoch * self.num_epochs - 1e-9)))

    @property
    def fingerprint(self) -> str:
        """Identifies everything that decides which documents are trained in which step; no layout."""
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(self.lengths, dtype="<i8").data)
        digest.update(np.ascontiguousarray(self.loss_weight_totals, dtype="<f8").data)
        settings = (self.source_fingerprint, self.seed, self.global_batch_size, self.global_batch_tokens)
        digest.update(repr(settings).encode())
        return digest.hexdigest()

    def step(self, number: int) -> Step:
        """The step with this number, 1 … num_steps; costs the same wherever it lies."""
        assert 1 <= number <= self.num_steps, f"step {number} of {self.num_steps}"
        epoch, place = divmod(number - 1, self.steps_per_epoch)
        documents = self._order(epoch, self._boundary(epoch, place), self._boundary(epoch, place + 1))
        return Step(
            number=number,
            epoch=epoch,
            documents=documents,
            total_loss_weight=float(self.loss_weight_totals[documents].sum()),
            num_tokens=int(self.lengths[documents].sum()),
            num_targets=int(self.num_targets[documents].sum()),
        )

    def steps(self, first: int = 1) -> Iterator[Step]:
        """Every step from `first` on."""
        return (self.step(number) for number in range(first, self.num_steps + 1))

    def steps_of(self, documents: np.ndarray, *, epoch: int) -> np.ndarray:
        """The numbers of the steps in which an epoch trains these documents: int64, one for each.

        An epoch that the run does not finish has steps beyond `num_steps`.
        """
        places = places_in_order(documents, self.num_documents, seed=self.seed, epoch=epoch)
        if self.global_batch_tokens is None:
            steps = ((places + 1) * self.steps_per_epoch - 1) // self.num_documents
        else:
            steps = np.searchsorted(_token_boundaries(self, epoch), places, side="right") - 1
        return epoch * self.steps_per_epoch + steps + 1

    def rows(self, step: Step, *, layout: Layout, rank: int = 0, world_size: int = 1) -> list[Row]:
        """The rows of a step that this rank trains."""
        ranks = lay_out(step.documents, self.lengths[step.documents], layout=layout, world_size=world_size)
        return ranks[rank]

    def totals(self, last_step: int) -> tuple[int, int]:
        """Tokens and targets of the steps 1 … last_step."""
        epochs, place = divmod(last_step, self.steps_per_epoch)
        num_tokens = epochs * int(self.lengths.sum())
        num_targets = epochs * int(self.num_targets.sum())
        end = self._boundary(epochs, place) if place else 0
        for start in range(0, end, _DOCUMENTS_AT_ONCE):
            documents = self._order(epochs, start, min(start + _DOCUMENTS_AT_ONCE, end))
            num_tokens += int(self.lengths[documents].sum())
            num_targets += int(self.num_targets[documents].sum())
        return num_tokens, num_targets

    def _order(self, epoch: int, start: int, stop: int) -> np.ndarray:
        return epoch_order(self.num_documents, seed=self.seed, epoch=epoch, start=start, stop=stop)

    def _boundary(self, epoch: int, place: int) -> int:
        """How many documents of an epoch come before the step at this place in it."""
        if self.global_batch_tokens is None:
            return even_boundary(place, num_documents=self.num_documents, num_steps=self.steps_per_epoch)
        return int(_token_boundaries(self, epoch)[place])

    def describe(self) -> dict[str, object]:
        """What `schedule.json` holds."""
        return {
            "num_documents": self.num_documents,
            "num_tokens": int(self.lengths.sum()),
            "num_targets": int(self.num_targets.sum()),
            "total_loss_weight": float(self.loss_weight_totals.sum()),
            "longest_document": int(self.lengths.max()),
            "steps_per_epoch": self.steps_per_epoch,
            "num_steps": self.num_steps,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
        }


def schedule_of(training: TrainingConfig, documents: DocumentSource) -> Schedule:
    """Which of the documents the settings train in which step."""
    return Schedule(
        documents.lengths,
        documents.loss_weight_totals,
        documents.num_targets,
        seed=training.seed,
        num_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        global_batch_size=training.global_batch_size,
        global_batch_tokens=training.global_batch_tokens,
        source_fingerprint=documents.fingerprint,
    )


@lru_cache(maxsize=2)
def _token_boundaries(schedule: Schedule, epoch: int) -> np.ndarray:
    order = epoch_order(schedule.num_documents, seed=schedule.seed, epoch=epoch)
    return token_boundaries(schedule.lengths[order], schedule.steps_per_epoch)
