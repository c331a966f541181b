"""What has become of each record between two policies: its loss, and whether its answer is right."""

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetooth.evaluation.document_losses import DocumentLosses, record_losses
from finetooth.evaluation.exact_match import Answered

# Losses of one policy in two layouts differ by less.
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A record with the mean loss per target under two policies."""

    origin: str
    first: float
    second: float
    num_targets: int

    @property
    def growth(self) -> float:
        """How much higher the second loss is; 0 where rounding may have made the difference."""
        growth = self.second - self.first
        return 0.0 if abs(growth) <= _SAME * max(1.0, abs(self.first)) else growth


@dataclass(frozen=True, slots=True)
class RecordChanges:
    """The changes of all records.

    first_loss, second_loss: over all documents: one sum, divided once
    better, worse: the records that changed most, the most changed first
    """

    first_loss: float
    second_loss: float
    num_records: int
    num_better: int
    num_worse: int
    better: list[RecordChange]
    worse: list[RecordChange]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Turned:
    """Origins of records whose answer is right under one of two policies only; how many are under both."""

    right: list[str]
    wrong: list[str]
    num_right_twice: int
    num_wrong_twice: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def changed_records(first: DocumentLosses, second: DocumentLosses, *, most: int) -> RecordChanges:
    """How the losses of the same documents differ; most: so many of either kind are named."""
    pairs = zip(record_losses(first), record_losses(second), strict=True)
    changes = [RecordChange(one.origin, one.loss, other.loss, one.num_targets) for one, other in pairs]
    better = [change for change in changes if change.growth < 0]
    worse = [change for change in changes if change.growth > 0]
    return RecordChanges(
        first_loss=first.over(first.numbers).loss,
        second_loss=second.over(second.numbers).loss,
        num_records=len(changes),
        num_better=len(better),
        num_worse=len(worse),
        better=heapq.nsmallest(most, better, key=lambda change: change.growth),
        worse=heapq.nlargest(most, worse, key=lambda change: change.growth),
    )


def turned_answers(first: Mapping[int, Answered], second: Mapping[int, Answered]) -> Turned:
    """Whose answers became right or wrong; both by the numbers of the same documents."""
    assert first.keys() == second.keys(), "both were asked the same"
    turned: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (False, True) for b in (False, True)}
    for number, one in first.items():
        turned[one.exact_match, second[number].exact_match].append(one.origin)
    return Turned(
        right=turned[False, True],
        wrong=turned[True, False],
        num_right_twice=len(turned[True, True]),
        num_wrong_twice=len(turned[False, False]),
    )
