"""Order: which documents are trained in which step, a pure function of (number of documents, seed, epoch)."""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def epoch_order(num_documents: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the documents: a permutation of 0 … num_documents − 1, int64.

    Documents are sorted by a hash of (seed, epoch, document), so the order depends on no library's
    random number generator and stays the same across its versions.

    >>> epoch_order(5, seed=42, epoch=0).tolist()
    [2, 0, 4, 3, 1]
    """
    start = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    keys = _mix(np.arange(num_documents, dtype=np.uint64) * _GOLDEN + start)
    return np.argsort(keys, kind="stable")


def even_boundaries(num_documents: int, num_steps: int) -> np.ndarray:
    """Cuts an epoch into steps whose sizes differ by at most one document: int64 [num_steps + 1].

    >>> even_boundaries(10, 4).tolist()
    [0, 2, 5, 7, 10]
    """
    return np.arange(num_steps + 1, dtype=np.int64) * num_documents // num_steps


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
    start = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.uint64(step))
    start = _mix(start + np.array([document], dtype=np.uint64) * _GOLDEN)
    return _mix(np.arange(count, dtype=np.uint64) + start)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64-bit integers."""
    with np.errstate(over="ignore"):
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
