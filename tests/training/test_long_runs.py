"""A run of very many steps needs no more memory at its end than at its beginning."""

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.documents import random_documents, small_policy
from tests.training.test_trainer import make_config

from finetooth.training import updates
from finetooth.training.step import StepResult
from finetooth.training.trainer import SFTTrainer

NUM_STEPS = 6000
# Rich fills caches of a fixed size meanwhile. What a run writes per step takes some hundred bytes.
BYTES_PER_STEP = 32


@pytest.mark.slow
@pytest.mark.parametrize("is_leaking", [False, True], ids=["as it is", "a line kept per step"])
def test_nothing_grows_with_the_number_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_leaking: bool
):
    """All that a run does at each step but the computing itself; the second case is the negative control."""
    sizes: dict[int, int] = {}
    kept: list[dict[str, float]] = []

    def count(*_: Any, place: str, **__: Any) -> StepResult:
        number = int(place.removeprefix("step "))
        if number in (NUM_STEPS // 3, NUM_STEPS):
            gc.collect()
            sizes[number] = tracemalloc.get_traced_memory()[0]
        if is_leaking:
            kept.append({"step": number, "loss": number / 3})
        return StepResult(loss=2 + number % 7 / 10, grad_norm=1.0)

    monkeypatch.setattr(updates, "train_step", count)
    config = make_config(tmp_path, max_steps=NUM_STEPS, every=1000)
    config = replace(config, checkpoints=replace(config.checkpoints, every=0, keep=1))
    with (tmp_path / "shown.txt").open("w") as shown:
        console = Console(file=shown, force_terminal=True)
        trainer = SFTTrainer(config, policy=small_policy(), train=random_documents(14), console=console)
        tracemalloc.start()
        try:
            trainer.train()
        finally:
            tracemalloc.stop()
    grown = sizes[NUM_STEPS] - sizes[NUM_STEPS // 3]
    assert (grown > BYTES_PER_STEP * NUM_STEPS) == is_leaking, f"{grown:,} bytes"
