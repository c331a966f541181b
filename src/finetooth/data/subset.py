"""A part of a document source, numbered anew."""

import hashlib
from collections.abc import Sequence

import numpy as np

from finetooth.data.records import Document, DocumentSource


class Subset:
    """The documents with the given numbers, in that order; a DocumentSource itself."""

    def __init__(self, source: DocumentSource, numbers: Sequence[int] | np.ndarray):
        self._source = source
        self._numbers = np.asarray(numbers, dtype=np.int64)
        self.lengths: np.ndarray = source.lengths[self._numbers]
        self.loss_weight_totals: np.ndarray = source.loss_weight_totals[self._numbers]
        self.num_targets: np.ndarray = source.num_targets[self._numbers]
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + self._numbers.tobytes()).hexdigest()

    def document(self, number: int, /) -> Document:
        """The document with this number, counted from 0."""
        return self._source.document(int(self._numbers[number]))
