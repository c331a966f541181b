"""How fast a device multiplies matrices in each number format: what decides which precision pays there.

A processor without instructions for bf16 computes it by hand, up to two hundred times slower than float32. So
products start tiny, and grow only while the next size is sure to be quick.
"""

import contextlib
import time
from collections.abc import Generator
from functools import cache

import torch

_SMALLEST, _LARGEST = 128, {"cpu": 1024, "mps": 2048, "cuda": 4096}
# Twice the size takes eight times as long; seconds that one product may be expected to take.
_GROWTH = 8
_LONGEST_PRODUCT = 0.02
# The first product of a size loads and plans; so many later ones, or for so long, are measured.
_MOST_PRODUCTS, _LONGEST_ROUND = 8, 0.01
# Casts and everything beside matrix products gain nothing from bf16, so products must gain clearly.
_CLEARLY_FASTER = 1.5


def matmul_rates(device: torch.device) -> dict[torch.dtype, float]:
    """Floating-point operations per second that matrix products reach, by number format; float32 comes first.

    A product of n×n matrices counts as 2n³. On a CPU it is what one thread reaches while it is not
    interrupted, found in about 0.2 s. On mps float32 alone is measured, as nothing else is trained there.

    >>> list(matmul_rates(torch.device("cpu")))
    [torch.float32, torch.bfloat16, torch.float16]
    """
    dtypes = (torch.float32,) if device.type == "mps" else (torch.float32, torch.bfloat16, torch.float16)
    with _single_thread():
        return {dtype: _rate(dtype, device) for dtype in dtypes}


def bf16_pays(rates: dict[torch.dtype, float]) -> bool:
    """Whether products in bf16 are so much faster than in float32 that whole steps are.

    >>> bf16_pays({torch.float32: 50e9, torch.bfloat16: 1.3e9})
    False
    """
    return rates.get(torch.bfloat16, 0.0) >= _CLEARLY_FASTER * rates[torch.float32]


@cache
def bf16_pays_on_cpu() -> bool:
    """Whether it does on this processor; measured once, and only where there are instructions for bf16."""
    is_known = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return is_known and bf16_pays(matmul_rates(torch.device("cpu")))


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    """The best rate of ever larger products, none of which should take longer than a moment."""
    size, rate = _SMALLEST, 0.0
    while True:
        seconds = _shortest_product(size, dtype, device)
        rate = max(rate, 2 * size**3 / seconds)
        if size == _LARGEST[device.type] or _GROWTH * seconds > _LONGEST_PRODUCT:
            return rate
        size *= 2


def _shortest_product(size: int, dtype: torch.dtype, device: torch.device) -> float:
    # Not random, so that no generator is moved; not constant, as GPUs save power on equal numbers.
    matrix = torch.linspace(-1, 1, size * size, device=device).reshape(size, size).to(dtype)
    _seconds(matrix)
    end = time.perf_counter() + _LONGEST_ROUND
    times = [_seconds(matrix)]
    while len(times) < _MOST_PRODUCTS and time.perf_counter() < end:
        times.append(_seconds(matrix))
    return min(times)


def _seconds(matrix: torch.Tensor) -> float:
    """What a product takes; on a CPU the thread's own time, as other programs may keep it waiting."""
    clock = time.thread_time if matrix.device.type == "cpu" else time.perf_counter
    _wait_for(matrix.device)
    start = clock()
    torch.mm(matrix, matrix)
    _wait_for(matrix.device)
    return clock() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def _single_thread() -> Generator[None]:
    """Threads of one product wait for one another, for milliseconds where other programs are busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
