"""How fast this machine's processor multiplies matrices, told without loading torch."""

import time

import numpy as np

_SIZE = 512
_FEWEST_PRODUCTS, _LONGEST_ROUND = 3, 0.2


def product_rate() -> float:
    """Floating-point operations per second that float32 products reach, with the threads numpy takes.

    A product of n×n matrices counts as 2n³. It is the best of several, as other programs may be busy; found
    in about 0.2 s. Threads are as many as OMP_NUM_THREADS says, or the cores, which is what training takes.
    """
    matrix = np.linspace(-1, 1, _SIZE * _SIZE, dtype=np.float32).reshape(_SIZE, _SIZE)
    _seconds(matrix)
    times: list[float] = []
    end = time.perf_counter() + _LONGEST_ROUND
    while len(times) < _FEWEST_PRODUCTS or time.perf_counter() < end:
        times.append(_seconds(matrix))
    return 2 * _SIZE**3 / min(times)


def _seconds(matrix: np.ndarray) -> float:
    start = time.perf_counter()
    np.matmul(matrix, matrix)
    return time.perf_counter() - start
