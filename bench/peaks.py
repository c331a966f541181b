"""Measures what the machine can do: matrix products in each number format, and the head with its loss.

python bench/peaks.py --head 8192 4096 151936
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetooth import DeviceManager
from finetooth.base.precision_probe import bf16_pays, matmul_rates
from finetooth.model.loss import head_loss

# Sizes are tried while a product takes no longer; each for so many seconds.
_LONGEST_PRODUCT, _SECONDS_PER_SIZE = 0.5, 0.5
_HEADS = {"cpu": (1024, 512, 32768), "cuda": (8192, 4096, 151936), "mps": (1024, 512, 32768)}
_SIZES = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384), "mps": (2048, 4096)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", nargs=3, type=int, metavar=("N", "D", "V"))
    device = DeviceManager().device
    head = parser.parse_args(arguments).head or _HEADS[device.type]
    rates = matmul_rates(device)
    pays = bf16_pays(rates)
    dtypes = [torch.float32, torch.bfloat16] if pays or device.type == "cuda" else [torch.float32]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    peaks = {_short(dtype): _peak(dtype, device) for dtype in dtypes}
    slow = {_short(dtype): rate for dtype, rate in rates.items() if dtype == torch.bfloat16 and not pays}
    result = {
        "device": name,
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "bf16_pays": pays,
        "peak_flops": slow | peaks,
        "head": {"shape": head, "seconds": _head_seconds(*head, dtype=dtypes[-1], device=device)},
    }
    print(json.dumps(result))


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _peak(dtype: torch.dtype, device: torch.device) -> float:
    """The best rate of products of n × n matrices over all sizes, in floating-point operations per second."""
    best = 0.0
    for size in _SIZES[device.type]:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        seconds = _shortest(lambda left=left, right=right: torch.mm(left, right), device)
        best = max(best, 2 * size**3 / seconds)
        if 8 * seconds > _LONGEST_PRODUCT:
            break
    return best


def _head_seconds(num_targets: int, hidden: int, vocabulary: int, **options: Any) -> float:
    """Forward and backward pass of finetooth's head and loss over [N, D] hidden states."""
    dtype, device = options["dtype"], options["device"]
    hidden_ND = torch.randn(num_targets, hidden, dtype=dtype, device=device, requires_grad=True)
    weight_VD = torch.randn(vocabulary, hidden, dtype=dtype, device=device).mul_(0.02).requires_grad_()
    targets_N = torch.randint(vocabulary, (num_targets,), device=device)
    weights_N = torch.ones(num_targets, device=device)

    def run() -> None:
        hidden_ND.grad = weight_VD.grad = None
        head_loss(hidden_ND, weight_VD, None, targets_N, weights_N).backward()

    return _shortest(run, device)


def _shortest(run: Callable[[], object], device: torch.device) -> float:
    """The least time of several runs; the first one, which loads and plans, is not counted."""
    run()
    times: list[float] = []
    end = time.perf_counter() + _SECONDS_PER_SIZE
    while len(times) < 3 or time.perf_counter() < end:
        _wait_for(device)
        started = time.perf_counter()
        run()
        _wait_for(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


if __name__ == "__main__":
    main()
