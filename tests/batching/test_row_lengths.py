"""Row lengths: few of them, fitted to the run, hardly longer than its rows."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.batching import row_lengths as module
from finetooth.batching.packing import Layout
from finetooth.batching.row_lengths import NUM_ROW_LENGTHS, fit_row_lengths, padded_length, row_lengths
from finetooth.batching.schedule import Schedule


def padded(lengths: list[int], among: list[int]) -> int:
    return sum(next(each for each in among if each >= length) for length in lengths)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 3))
def test_no_other_choice_pads_less(lengths: list[int], most: int):
    found = fit_row_lengths(np.array(lengths), longest=20, most=most)
    assert found[-1] == 20
    assert len(found) <= most
    assert found == sorted(set(found))
    others = (chosen for size in range(most) for chosen in combinations(range(1, 20), size))
    assert padded(lengths, found) == min(padded(lengths, [*other, 20]) for other in others)


def chat(num_documents: int, row_tokens: int) -> np.ndarray:
    """Lengths of mixed conversations: log-normal, median 200, σ 0.9."""
    drawn = np.random.default_rng(0).lognormal(np.log(200), 0.9, num_documents)
    return np.clip(drawn, 8, row_tokens).astype(np.int64)


def fill(schedule: Schedule, layout: Layout, among: list[int]) -> float:
    """Tokens of documents for each token of a row, over an epoch."""
    rows = [row for step in schedule.steps() for row in schedule.rows(step, layout=layout)]
    tokens = sum(padded_length([row], schedule.lengths, among) for row in rows)
    return schedule.lengths.sum() / tokens


@pytest.mark.parametrize("row_tokens", [4096, 16384])
@pytest.mark.parametrize("rows_of_a_step", [2, 4, 8])
def test_rows_of_mixed_conversations_are_full(row_tokens: int, rows_of_a_step: int):
    lengths = chat(20_000, row_tokens)
    size = rows_of_a_step * row_tokens
    schedule = Schedule(lengths, lengths / 2, lengths // 2, seed=0, global_batch_tokens=size)
    layout = Layout(packing=True, row_tokens=row_tokens)
    among = row_lengths(schedule, layout, device_type="cuda")
    assert len(among) <= NUM_ROW_LENGTHS
    assert fill(schedule, layout, among) >= 0.97
    eighths = [-(-row_tokens * number // 8) for number in range(1, 9)]
    assert fill(schedule, layout, eighths) < fill(schedule, layout, among), "the fit is worth it"


def test_rows_on_a_cpu_and_rows_of_one_document_are_not_padded():
    lengths = chat(100, 4096)
    schedule = Schedule(lengths, lengths / 2, lengths // 2, seed=0, global_batch_size=10)
    assert row_lengths(schedule, Layout(packing=True, row_tokens=4096), device_type="cpu") == []
    assert row_lengths(schedule, Layout(packing=False, row_tokens=4096), device_type="cuda") == []


def test_fitting_costs_the_same_however_long_the_run_is(monkeypatch: pytest.MonkeyPatch):
    laid_out: list[int] = []
    real = module.lay_out

    def counting(documents: np.ndarray, *arguments: np.ndarray, **options: object) -> object:
        laid_out.append(len(documents))
        return real(documents, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "lay_out", counting)
    lengths = chat(200_000, 4096)
    for size in (4, 50_000):
        schedule = Schedule(lengths, lengths / 2, lengths // 2, seed=0, num_epochs=3, global_batch_size=size)
        laid_out.clear()
        row_lengths(schedule, Layout(packing=True, row_tokens=4096), device_type="cuda")
        assert len(laid_out) <= 128
        assert sum(laid_out) <= 128_000
