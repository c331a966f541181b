"""A part of a document source, numbered anew."""

import hashlib
from collections.abc import Sequence

import numpy as np

from finetooth.data.records import Document, DocumentSource


class Subset:
    """The documents with the given numbers, in that order; a DocumentSource itself.

    numbers: int64 [S], what number each has in the source
    """

    def __init__(self, source: DocumentSource, numbers: Sequence[int] | np.ndarray):
        self._source = source
        self.numbers = np.asarray(numbers, dtype=np.int64)
        self.lengths: np.ndarray = source.lengths[self.numbers]
        self.loss_weight_totals: np.ndarray = source.loss_weight_totals[self.numbers]
        self.num_targets: np.ndarray = source.num_targets[self.numbers]
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + self.numbers.tobytes()).hexdigest()

    def document(self, number: int, /) -> Document:
        """The document with this number, counted from 0."""
        return self._source.document(int(self.numbers[number]))
