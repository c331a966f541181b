"""Figures of what was kept, gathered record by record: lengths, turns, roles and the share of targets."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetooth.data.ledger import Outcome
from finetooth.data.records import Conversation

_BINS = 20


@dataclass(slots=True)
class Statistics:
    """Adds up kept records; takes 4 bytes per document.

    num_turns: how many conversations have so many assistant turns
    num_roles: how many messages each role has
    """

    num_records: int = 0
    num_targets: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    num_turns: Counter[int] = field(default_factory=Counter[int])
    num_roles: Counter[str] = field(default_factory=Counter[str])

    def add(self, outcome: Outcome) -> None:
        """Adds a record that was kept."""
        self.num_records += 1
        self.lengths.extend(len(document.token_ids) for document in outcome.documents)
        self.num_targets += sum(document.num_targets for document in outcome.documents)
        if isinstance(outcome.item, Conversation):
            roles = [message.role for message in outcome.item.messages]
            self.num_roles.update(roles)
            self.num_turns[roles.count("assistant")] += 1

    def summary(self) -> dict[str, Any]:
        """As prepared.json holds it: {"records", "documents", …, "lengths": {"mean", …, "histogram"}, …}."""
        lengths = np.asarray(self.lengths, np.int64)
        num_tokens = int(lengths.sum())
        return {
            "records": self.num_records,
            "documents": len(lengths),
            "tokens": num_tokens,
            "targets": self.num_targets,
            "targets_share": self.num_targets / num_tokens if num_tokens else 0.0,
            "lengths": _lengths(lengths),
            "turns": {str(number): count for number, count in sorted(self.num_turns.items())},
            "roles": dict(sorted(self.num_roles.items())),
        }


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The sum of several."""
    total = Statistics()
    for part in parts:
        total.num_records += part.num_records
        total.num_targets += part.num_targets
        total.lengths.extend(part.lengths)
        total.num_turns.update(part.num_turns)
        total.num_roles.update(part.num_roles)
    return total


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Of no documents, nothing. The histogram has bins of equal width from 0 through the longest."""
    if not len(lengths):
        return {}
    longest = int(lengths.max())
    counts, edges = np.histogram(lengths, bins=min(_BINS, longest), range=(0, longest))
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95, method="inverted_cdf")),
        "max": longest,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
