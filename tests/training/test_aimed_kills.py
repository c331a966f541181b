"""Kills aimed at the moments that matter: the resumed run is the uninterrupted one to the bit.

`tests/torture/test_kills.py` kills at random moments, `tests/torture/test_saving_storm.py` while saving.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tests.ranks import FORKING
from tests.small_run import write_run
from tests.torture.test_kills import hashes

from finetooth.config.load import load_config
from finetooth.train import train
from finetooth.training import updates
from finetooth.training.examination import Examination
from finetooth.training.parallel import SharedPolicy

SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"max_steps": 18, "global_batch_size": 4, "packing": False, "dropout": 0.2},
    "evaluation": {"every": 3, "exact_match": "plain", "exact_match_records": 2, "max_new_tokens": 4},
    "checkpoints": {"every": 1, "keep": 2},
}
# 24 records, 6 of them for evaluation: an epoch has 5 steps of 3 or 4 documents, each with its own pass.
MOMENTS = [
    ("accumulating", 2),
    ("evaluating", 3),
    ("updated", 5),
    ("beginning", 6),
    ("answering", 6),
    ("accumulating", 9),
    ("evaluating", 9),
    ("updated", 10),
    ("accumulating", 11),
    ("answering", 12),
    ("evaluating", 18),
]


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL ends a process")


def kill_in_update(moment: str, step: int) -> None:
    """At the step's beginning, before its third gradient is added, or when its parameters are new."""
    train_step, backward = updates.train_step, SharedPolicy.backward

    def aimed(*arguments: Any, place: str, **options: Any) -> Any:
        if place != f"step {step}":
            return train_step(*arguments, place=place, **options)
        if moment == "beginning":
            kill()
        num_passes = 0

        def counted(shared: SharedPolicy, loss_sum: torch.Tensor) -> None:
            nonlocal num_passes
            num_passes += 1
            if moment == "accumulating" and num_passes == 3:
                kill()
            backward(shared, loss_sum)

        SharedPolicy.backward = counted  # type: ignore[method-assign]
        train_step(*arguments, place=place, **options)
        kill()

    updates.train_step = aimed


def kill_in_evaluation(moment: str, step: int) -> None:
    """Between the batches of the losses, or between the tokens of an answer."""
    examine = Examination.examine

    def deadly(ask: Callable[[], bool]) -> Callable[[], bool]:
        num_asked = 0

        def asked() -> bool:
            nonlocal num_asked
            num_asked += 1
            return kill() if num_asked == 2 else ask()

        return asked

    def aimed(examination: Examination, number: int, **asks: Callable[[], bool]) -> dict[str, float]:
        name = "is_leaving" if moment == "evaluating" else "is_asked"
        asks[name] = deadly(asks[name]) if number == step else asks[name]
        return examine(examination, number, **asks)

    Examination.examine = aimed  # type: ignore[method-assign]


def train_in(folder: Path, output: str, aim: tuple[str, int] | None) -> None:
    """Runs in a process of its own."""
    os.chdir(folder)
    torch.set_num_threads(1)
    if aim is not None:
        (kill_in_update if aim[0] in ("beginning", "accumulating", "updated") else kill_in_evaluation)(*aim)
    with (folder / "shown.txt").open("a") as shown, contextlib.redirect_stderr(shown):
        train(load_config(folder / "run.yaml", [f"output_dir={output}"]), resume="auto")


def exit_code(folder: Path, output: str, aim: tuple[str, int] | None = None) -> int | None:
    process = FORKING.Process(target=train_in, args=(folder, output, aim))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {"type": "lora"}], ids=["full", "lora"])
def test_kills_at_aimed_moments_change_nothing(tmp_path: Path, adapter: dict[str, Any]):
    write_run(tmp_path, num_records=24, **SETTINGS, adapter=adapter)
    assert exit_code(tmp_path, "whole") == 0
    for moment in MOMENTS:
        assert exit_code(tmp_path, "killed", moment) == -signal.SIGKILL, moment
    assert exit_code(tmp_path, "killed") == 0
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
