"""Order: which documents are trained in which step, a pure function of (number of documents, seed, epoch)."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

# Above so many documents, an order is no longer sorted as a whole but computed place by place.
LARGEST_SORTED = 1 << 20
_PLACES_AT_ONCE = 1 << 20
_NUM_ROUNDS = 4
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def epoch_order(
    num_documents: int, *, seed: int, epoch: int, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """The documents at the places start … stop − 1 of the order in which an epoch visits them, int64.

    The whole order is a permutation of 0 … num_documents − 1. Documents are sorted by a hash of (seed,
    epoch, document), so the order depends on no library's random number generator and stays the same
    across its versions. Very many documents are not sorted: a keyed permutation (a Feistel network, Luby
    and Rackoff 1988, repeated until the place is below num_documents) gives each place by itself.

    >>> epoch_order(5, seed=42, epoch=0).tolist()
    [2, 0, 4, 3, 1]
    >>> epoch_order(100_000_000, seed=42, epoch=0, start=70_000_000, stop=70_000_003).tolist()
    [47166994, 79118080, 70146788]
    """
    stop = num_documents if stop is None else min(stop, num_documents)
    if num_documents <= LARGEST_SORTED:
        return _sorted_order(num_documents, seed, epoch)[start:stop]
    order = np.empty(stop - start, dtype=np.int64)
    for first in range(start, stop, _PLACES_AT_ONCE):
        places = np.arange(first, min(first + _PLACES_AT_ONCE, stop), dtype=np.uint64)
        order[first - start :][: len(places)] = _permuted(places, num_documents, _key(seed, epoch))
    return order


def places_in_order(documents: np.ndarray, num_documents: int, *, seed: int, epoch: int) -> np.ndarray:
    """Where documents stand in the order of an epoch, int64: what `epoch_order` does, the other way.

    Of very many documents, only those that are asked for cost anything.

    >>> places_in_order(np.array([2, 0, 4, 3, 1]), 5, seed=42, epoch=0).tolist()
    [0, 1, 2, 3, 4]
    """
    if num_documents <= LARGEST_SORTED:
        places = np.empty(num_documents, dtype=np.int64)
        places[_sorted_order(num_documents, seed, epoch)] = np.arange(num_documents)
        return places[documents]
    return _permuted(documents.astype(np.uint64), num_documents, _key(seed, epoch), is_reversed=True)


def even_boundary(place: int, *, num_documents: int, num_steps: int) -> int:
    """The documents before the step at this place, in an epoch of steps that differ by at most one document.

    >>> [even_boundary(place, num_documents=10, num_steps=4) for place in range(5)]
    [0, 2, 5, 7, 10]
    """
    return place * num_documents // num_steps


def token_boundaries(lengths: np.ndarray, num_steps: int) -> np.ndarray:
    """Cuts an epoch into steps of about equally many tokens, none empty: int64 [num_steps + 1].

    lengths: int64 [S], tokens per document in the epoch's order; num_steps ≤ S.

    >>> token_boundaries(np.array([5, 1, 1, 1, 4]), 3).tolist()
    [0, 1, 4, 5]
    """
    cumulative: npt.NDArray[np.int64] = np.concatenate([[0], np.cumsum(lengths)])
    wanted: npt.NDArray[np.float64] = cumulative[-1] * np.arange(1, num_steps) / num_steps
    right: npt.NDArray[np.int64] = np.searchsorted(cumulative, wanted).clip(1, len(lengths))
    nearest: npt.NDArray[np.int64] = right - (wanted - cumulative[right - 1] < cumulative[right] - wanted)
    # Very long documents can pull two cuts together; keep at least one document between neighbours.
    cuts = np.arange(1, num_steps)
    apart = np.maximum.accumulate(nearest.clip(cuts) - cuts) + cuts
    inner = apart.clip(max=len(lengths) - num_steps + cuts)
    return np.concatenate([[0], inner, [len(lengths)]]).astype(np.int64)


def draw_keys(seed: int, step: int, document: int, *, count: int) -> np.ndarray:
    """A key for each of the first `count` positions of a document in a step: uint64 [count], well mixed."""
    start = _mix(_key(seed, step) + np.array([document], dtype=np.uint64) * _GOLDEN)
    return _mix(np.arange(count, dtype=np.uint64) + start)


@lru_cache(maxsize=4)
def _sorted_order(num_documents: int, seed: int, epoch: int) -> np.ndarray:
    keys = _mix(np.arange(num_documents, dtype=np.uint64) * _GOLDEN + _key(seed, epoch))
    order = np.argsort(keys, kind="stable")
    order.setflags(write=False)
    return order


def _permuted(
    places: np.ndarray, num_documents: int, key: np.ndarray, *, is_reversed: bool = False
) -> np.ndarray:
    """Where a keyed permutation of 0 … num_documents − 1 sends the places, or where from: int64."""
    half = np.uint64(-(-(num_documents - 1).bit_length() // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = _mix(key + np.arange(_NUM_ROUNDS, dtype=np.uint64))

    def shuffled(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        return (left << half) | right

    def sorted_out(values: np.ndarray) -> np.ndarray:
        left, right = values >> half, values & low
        for round_key in keys[::-1]:
            left, right = right ^ (_mix(left + round_key) & low), left
        return (left << half) | right

    move = sorted_out if is_reversed else shuffled
    values = move(places)
    while len(outside := np.flatnonzero(values >= num_documents)):
        values[outside] = move(values[outside])
    return values.astype(np.int64)


def _key(seed: int, number: int) -> np.ndarray:
    return _mix(_mix(np.array([seed], dtype=np.uint64)) + np.uint64(number))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64-bit integers."""
    with np.errstate(over="ignore"):
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
