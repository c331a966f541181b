"""A signal ends `train` in every phase with a sentence, and the resumed run is the uninterrupted one."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_run

from finetooth import train as train_module
from finetooth.base.errors import FinetoothError, Stopped
from finetooth.config.load import load_config
from finetooth.evaluation import dev_loss
from finetooth.train import train
from finetooth.training import examination, trainer, updates

EXAM = {"every": 3, "exact_match": "plain", "exact_match_records": 3, "max_new_tokens": 4}
CHANGING = ("seconds", "time", "peak_memory_mb")


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CHANGING} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    with contextlib.chdir(folder):
        write_run(folder, evaluation=EXAM)
        train(load_config("run.yaml"))
    return folder / "run"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, evaluation=EXAM)
    return tmp_path


def interrupt(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, *, call: int = 1, number: int = signal.SIGTERM
) -> None:
    """Sends a signal to this process when a function is called for the so-manieth time."""
    original: Callable[..., Any] = getattr(place, name)
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, interrupted)


@pytest.mark.parametrize(
    ("place", "name"),
    [(train_module, "prepare_data"), (train_module, "start_policy"), (train_module, "describe_run")],
    ids=["preparing", "loading", "setting up"],
)
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_before_training_it_ends_at_once(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    number: signal.Signals,
    exit_code: int,
):
    interrupt(monkeypatch, place, name, number=number)
    with pytest.raises(Stopped) as caught:
        train(load_config("run.yaml"))
    sentence = f"run: stopped by {number.name} before the first step; start it with the same command"
    assert (str(caught.value), caught.value.exit_code) == (sentence, exit_code)
    assert not (folder / "run" / "metrics.jsonl").exists()
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


# Forward passes of an evaluation, calls of `generate`, and savings are counted over the whole run.
PHASES = {
    "a step": (updates, "train_step", 4),
    "an evaluation": (dev_loss, "collate", 7),
    "generating": (examination, "answer_documents", 2),
    "saving": (trainer.CheckpointManager, "save", 2),
}


@pytest.mark.parametrize("phase", PHASES)
def test_while_training_it_saves_and_the_resumed_run_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path, phase: str
):
    place, name, call = PHASES[phase]
    with monkeypatch.context() as patch:
        interrupt(patch, place, name, call=call)
        with pytest.raises(Stopped) as caught:
            train(load_config("run.yaml"))
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["state"] == "stopped"
    last = summary["num_steps"]
    assert 0 < last < 10
    assert str(caught.value) == f"run: stopped after step {last} of 10, saved; continue with --resume"
    if phase in ("an evaluation", "generating"):
        assert metrics(folder / "run")[-1]["step"] == last
        assert "train_loss" not in metrics(folder / "run")[-1], "the evaluation was left"
    assert not (folder / "run" / "final").exists()
    train(load_config("run.yaml"), resume="must")
    assert metrics(folder / "run") == metrics(uninterrupted)
    for path in ("final/model.safetensors", "samples/step-000003.jsonl"):
        assert (folder / "run" / path).read_bytes() == (uninterrupted / path).read_bytes()


def test_before_the_first_step_there_is_nothing_to_save(folder: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt(monkeypatch, dev_loss, "collate")
    with pytest.raises(Stopped) as caught:
        train(load_config("run.yaml"))
    assert str(caught.value) == "run: stopped before the first step; continue with --resume auto"
    with pytest.raises(FinetoothError, match="no checkpoint"):
        train(load_config("run.yaml"), resume="must")
    assert train(load_config("run.yaml"), resume="auto")["state"] == "finished"


def test_what_is_done_is_exported_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt(monkeypatch, train_module, "save_final")
    assert train(load_config("run.yaml"))["state"] == "finished"
    assert (folder / "run" / "final" / "MANIFEST.json").exists()
