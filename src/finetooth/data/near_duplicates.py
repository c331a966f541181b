"""Finds records almost equal to an earlier one: those that share most of their word triples.

Candidates come from MinHash signatures (the library rensa); whether two records are almost equal is then
computed exactly, as the share of common triples in all triples of both (Jaccard's index). A pair at the
limit is missed once in a hundred at most, and no pair is found wrongly. Each record takes about 1 KB and
8 bytes per word.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetooth.base.errors import ConfigError, problem
from finetooth.config.schema import DataConfig
from finetooth.data.ledger import Item, Outcome
from finetooth.data.records import Conversation, Origin, PlainText

_NUM_PERMUTATIONS = 128
_SEED = 42
_FOUND = 0.99  # share of pairs at the limit that must become candidates
_WORD = re.compile(r"\w+")


class NearDuplicateFinder:
    """Knows every record that was kept so far; call `judge` in the order of records.

    Raises ConfigError where the library is missing.
    """

    def __init__(self, data: DataConfig):
        self._rensa = _library()
        self._data = data
        self._similarity = data.near_duplicate_similarity
        rows = _rows_per_band(self._similarity)
        self._index = self._rensa.RMinHashLSH(self._similarity, _NUM_PERMUTATIONS, _NUM_PERMUTATIONS // rows)
        self._triples: list[np.ndarray] = []
        self._origins: list[Origin] = []

    def judge(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcomes; one almost equal to an earlier one is dropped, or its `same_as` names that one."""
        judged = list(outcomes)
        texts = [(place, _text_of(o.item)) for place, o in enumerate(outcomes) if o.state == "kept"]
        known = [(place, text) for place, text in texts if text]
        hashed = self._rensa.RMinHash.hash_token_sets([_triples_of(text) for _, text in known])
        for (place, _), hashes in zip(known, hashed, strict=True):
            judged[place] = self._judge_one(outcomes[place], np.unique(np.array(hashes, np.uint64)))
        return judged

    def _judge_one(self, outcome: Outcome, triples: np.ndarray) -> Outcome:
        signature = self._rensa.RMinHash(_NUM_PERMUTATIONS, _SEED)
        signature.update([triple.tobytes() for triple in triples])
        candidates: list[int] = self._index.query(signature)
        for number in sorted(candidates):
            if _share_in_common(triples, self._triples[number]) >= self._similarity:
                same_as = self._origins[number]
                if self._data.on_near_duplicate == "report":
                    return replace(outcome, same_as=same_as)
                reason = "almost equal to an earlier record"
                remedy = "set data.on_near_duplicate to keep or report"
                return replace(outcome, state="dropped", reason=reason, same_as=same_as, remedy=remedy)
        self._index.insert(len(self._triples), signature)
        self._triples.append(triples)
        self._origins.append(outcome.entry.origin)
        return outcome


def _library() -> Any:
    try:
        import rensa  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        fact = "almost equal records are found with a library that is not installed"
        remedy = "pip install 'finetooth[neardup]', or write keep"
        raise ConfigError(problem("data.on_near_duplicate", fact, remedy)) from error
    return rensa


def _rows_per_band(similarity: float) -> int:
    """As many as find a pair of this similarity well enough: fewer candidates have to be looked at."""
    for rows in (16, 8, 4, 2):
        if 1 - (1 - similarity**rows) ** (_NUM_PERMUTATIONS // rows) >= _FOUND:
            return rows
    return 1


def _text_of(item: Item | None) -> str:
    if isinstance(item, Conversation):
        return "\n".join(message.content for message in item.messages)
    return item.text if isinstance(item, PlainText) else ""


def _triples_of(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [" ".join(triple) for triple in zip(words, words[1:], words[2:], strict=False)] or [text]


def _share_in_common(first: np.ndarray, second: np.ndarray) -> float:
    num_common = len(np.intersect1d(first, second, assume_unique=True))
    return num_common / (len(first) + len(second) - num_common)
