"""The probe of number formats is quick on slow ones, leaves nothing behind, and says what pays."""

import time

import pytest
import torch

from finetooth.base import precision_probe
from finetooth.base.precision_probe import bf16_pays, matmul_rates

CPU = torch.device("cpu")


@pytest.fixture
def sizes_tried(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, list[int]]:
    """Pretends 200 GFLOP/s in float32 and 2 in bf16 and fp16; holds the sizes that were asked for."""
    tried: dict[torch.dtype, list[int]] = {}

    def pretend(size: int, dtype: torch.dtype, device: torch.device) -> float:
        tried.setdefault(dtype, []).append(size)
        return 2 * size**3 / (2e11 if dtype is torch.float32 else 2e9)

    monkeypatch.setattr(precision_probe, "_shortest_product", pretend)
    return tried


def test_products_grow_only_while_the_next_size_is_quick(sizes_tried: dict[torch.dtype, list[int]]):
    rates = matmul_rates(CPU)
    assert rates == pytest.approx({torch.float32: 2e11, torch.bfloat16: 2e9, torch.float16: 2e9})
    assert sizes_tried[torch.float32] == [128, 256, 512, 1024]
    assert sizes_tried[torch.bfloat16] == sizes_tried[torch.float16] == [128, 256]


def test_the_first_product_of_a_size_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    times = iter([0.001, *[0.004] * 8])
    monkeypatch.setattr(precision_probe, "_seconds", lambda matrix: next(times))
    assert precision_probe._shortest_product(64, torch.float32, CPU) == 0.004


def test_slow_products_are_measured_once_more_at_most(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(10))  # each look at the clock is a second later
    monkeypatch.setattr(precision_probe.time, "perf_counter", lambda: next(clock))
    measured: list[int] = []
    monkeypatch.setattr(precision_probe, "_seconds", lambda matrix: measured.append(1) or 1.0)
    precision_probe._shortest_product(64, torch.float32, CPU)
    assert len(measured) == 2


def test_a_real_probe_is_quick_and_leaves_threads_and_generators_as_they_were():
    state, num_threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        started = time.process_time()
        rates = matmul_rates(CPU)
        assert time.process_time() - started < 0.5
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(num_threads)
    assert all(rate > 1e7 for rate in rates.values())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("bf16", "pays"), [(1.3e9, False), (60e9, False), (90e9, True)])
def test_bf16_pays_where_products_gain_clearly(bf16: float, pays: bool):
    assert bf16_pays({torch.float32: 50e9, torch.bfloat16: bf16}) is pays


def test_without_a_rate_bf16_does_not_pay():
    assert not bf16_pays({torch.float32: 50e9})


def test_a_processor_without_instructions_for_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    """Control: what would be measured is believed where there are such instructions."""
    pays = {torch.float32: 1.0, torch.bfloat16: 3.0}
    monkeypatch.setattr(precision_probe, "matmul_rates", lambda _: pays)
    for has_mkldnn, is_known in ((False, True), (True, False), (True, True)):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda given=has_mkldnn: given)
        monkeypatch.setattr(
            torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda given=is_known: given, raising=False
        )
        assert precision_probe.bf16_pays_on_cpu.__wrapped__() is (has_mkldnn and is_known)
