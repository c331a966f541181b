"""A run: its curve to all digits, resumption to the bit, and what happens at each update."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.documents import Documents, random_documents, small_policy

from finetooth.base.errors import ConfigError, NonFiniteError
from finetooth.config.schema import (
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    SFTConfig,
    TrainingConfig,
)
from finetooth.model.policy import PolicyModel
from finetooth.training import trainer as trainer_module
from finetooth.training import updates
from finetooth.training.checkpoint import Checkpoint, CheckpointManager
from finetooth.training.trainer import SFTTrainer, TrainResult

GOLDEN = Path(__file__).parent / "golden_curve.json"


def make_config(folder: Path, *, every: int = 0, **training: Any) -> SFTConfig:
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "global_batch_size": 3,
        "learning_rate": 3e-3,
        "min_learning_rate": 3e-4,
        "warmup_steps": 2,
        "row_tokens": 64,
        "device": "cpu",
        "precision": "fp32",
        **training,
    }
    return SFTConfig(
        model=ModelConfig(path="unused"),
        data=DataConfig(train="unused", max_length=64),
        training=TrainingConfig(**settings),
        evaluation=EvaluationConfig(every=every, train_documents=4),
        checkpoints=CheckpointsConfig(every=1, keep=100),
        output_dir=str(folder),
    )


def run(config: SFTConfig, documents: Documents, *, dev: Documents | None = None) -> TrainResult:
    return SFTTrainer(config, policy=small_policy(), train=documents, dev=dev).train()


def losses(result: TrainResult) -> list[float]:
    return [line["loss"] for line in result.history if "loss" in line]


def resume(config: SFTConfig, documents: Documents, checkpoint: Checkpoint) -> TrainResult:
    from transformers import AutoModelForCausalLM

    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(checkpoint.folder))
    trainer = SFTTrainer(config, policy=policy, train=documents)
    trainer.take_up(checkpoint)
    return trainer.train()


def test_twenty_steps_follow_the_golden_curve(tmp_path: Path):
    """To 1e-6, as processors differ in the last bits; written by `python -m tests.training.test_trainer`."""
    config = make_config(tmp_path, num_train_epochs=4)
    assert losses(run(config, random_documents(15))) == pytest.approx(
        json.loads(GOLDEN.read_text()), rel=1e-6
    )


@pytest.mark.parametrize(
    "layout",
    [
        {"packing": False, "rows_at_once": 3},
        {"packing": False, "rows_at_once": 1},
        {"packing": True, "row_tokens": 64, "rows_at_once": 2},
        {"packing": True, "row_tokens": 200},
    ],
    ids=str,
)
def test_every_layout_follows_the_same_curve_for_fifty_steps(tmp_path: Path, layout: dict[str, Any]):
    documents = random_documents(15)
    usual = run(make_config(tmp_path / "usual", num_train_epochs=10), documents)
    other = run(make_config(tmp_path / "other", num_train_epochs=10, **layout), documents)
    assert len(losses(usual)) == 50
    assert losses(other) == pytest.approx(losses(usual), rel=1e-6)


def test_a_run_resumed_after_any_step_ends_with_identical_bits(tmp_path: Path):
    config, documents = make_config(tmp_path / "whole"), random_documents(14)
    whole = run(config, documents)
    num_steps = whole.last_step
    for step in range(1, num_steps):
        again = replace(config, output_dir=str(tmp_path / f"again-{step}"))
        folder = CheckpointManager(tmp_path / "whole" / "checkpoints").path_of(step)
        checkpoint = Checkpoint(
            folder, trainer_module.TrainingState(**json.loads((folder / "state.json").read_text()))
        )
        resumed = resume(again, documents, checkpoint)
        assert losses(resumed) == losses(whole)[step:]
        ours, theirs = (result.policy.model.state_dict() for result in (resumed, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert num_steps == 10


def test_resuming_without_the_optimizer_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: parameters alone do not continue the trajectory."""
    config, documents = make_config(tmp_path), random_documents(14)
    whole = run(config, documents)
    folder = CheckpointManager(tmp_path / "checkpoints").path_of(4)
    checkpoint = Checkpoint(
        folder, trainer_module.TrainingState(**json.loads((folder / "state.json").read_text()))
    )
    monkeypatch.setattr(trainer_module, "restore_optimizer", lambda *_, **__: None)
    resumed = resume(replace(config, output_dir=str(tmp_path / "again")), documents, checkpoint)
    assert losses(resumed)[1:] != losses(whole)[5:]


def test_saving_and_evaluating_change_no_bit(tmp_path: Path):
    documents, dev = random_documents(14), random_documents(5, seed=1)
    quiet = replace(make_config(tmp_path / "quiet"), checkpoints=CheckpointsConfig(every=0))
    first = run(quiet, documents)
    second = run(make_config(tmp_path / "busy", every=1), documents, dev=dev)
    assert losses(first) == losses(second)
    ours, theirs = (result.policy.state_dict() for result in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_logging_evaluation_and_saving_happen_once_per_update(tmp_path: Path):
    documents, dev = random_documents(14), random_documents(5, seed=1)
    config = make_config(tmp_path, every=3, packing=False, rows_at_once=1)
    config = replace(config, checkpoints=CheckpointsConfig(every=4, keep=100))
    history = run(config, documents, dev=dev).history
    assert [line["step"] for line in history if "loss" in line] == list(range(1, 11))
    assert [line["step"] for line in history if "dev_loss" in line] == [0, 3, 6, 9, 10]
    saved = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("step-")}
    best = min((line["dev_loss"], line["step"]) for line in history if line["step"] and "dev_loss" in line)[1]
    assert {"step-000004", "step-000008", "step-000010", f"step-{best:06d}"} <= saved
    assert os.readlink(tmp_path / "checkpoints" / "best") == f"step-{best:06d}"


def test_a_line_of_metrics_holds_what_the_schedule_says(tmp_path: Path):
    documents = random_documents(14)
    trainer = SFTTrainer(make_config(tmp_path), policy=small_policy(), train=documents)
    started = time.time()
    line = next(line for line in trainer.train().history if line["step"] == 4 and "loss" in line)
    step = trainer.schedule.step(4)
    assert line["num_documents"] == len(step.documents)
    assert line["num_tokens"] == documents.lengths[step.documents].sum()
    assert line["num_targets"] == documents.num_targets[step.documents].sum()
    assert line["epoch"] == 0.8
    assert line["learning_rate"] == trainer.updates.learning_rate(4)
    assert set(line) == {
        *("step", "epoch", "loss", "learning_rate", "grad_norm", "num_documents", "num_targets"),
        *("num_tokens", "seconds", "time", "peak_memory_mb"),
    }
    assert started + line["seconds"] - 0.001 <= line["time"] <= time.time()


def test_a_loss_that_is_not_finite_names_the_step_and_the_documents(tmp_path: Path):
    documents = random_documents(14)
    poisoned = documents.documents[5]
    poisoned.token_ids[:] = 63
    policy = small_policy()
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[63] = torch.inf
    for document in documents.documents:
        document.token_ids[document.token_ids == 63] = 0 if document is not poisoned else 63
    # tied: infinite rows of the head make every loss infinite, so give the head its own rows
    policy = small_policy(tie_word_embeddings=False)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[63] = torch.inf
    trainer = SFTTrainer(make_config(tmp_path), policy=policy, train=documents)
    step = next(step for step in trainer.schedule.steps() if 5 in step.documents)
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"step {step.number}: the loss is nan; the parameters were not touched")
    assert second == "documents whose own loss is not finite: random.jsonl:6"


def test_a_changed_run_does_not_resume(tmp_path: Path):
    config, documents = make_config(tmp_path), random_documents(14)
    run(config, documents)
    checkpoint = trainer_module.CheckpointManager(tmp_path / "checkpoints").latest(notify=print)
    assert checkpoint is not None
    changed = make_config(tmp_path, learning_rate=5e-3, seed=1)
    with pytest.raises(ConfigError) as caught:
        resume(changed, documents, checkpoint)
    folder = tmp_path / "checkpoints" / "step-000010"
    assert str(caught.value).split("\n") == [
        f"training.learning_rate: 0.005 here, 0.003 in {folder}; undo the change",
        f"training.seed: 1 here, 42 in {folder}; undo the change",
        "output_dir: a run with other settings cannot go on here; "
        "undo the change, name another folder, or accept the change with --accept-changes",
    ]


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_ends_the_run_after_its_step_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, exit_code: int
):
    config, documents = make_config(tmp_path), random_documents(14)
    config = replace(config, checkpoints=CheckpointsConfig(every=0))
    original = updates.train_step

    def interrupted(*arguments: Any, **options: Any):
        if options["place"] == "step 4":
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(updates, "train_step", interrupted)
    handlers = signal.getsignal(number)
    result = run(config, documents)
    assert (result.last_step, result.stopped) == (4, exit_code)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    assert signal.getsignal(number) is handlers


def test_the_warmup_must_end_before_the_run_does(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        run(make_config(tmp_path, warmup_steps=10), random_documents(14))
    assert str(caught.value) == (
        "training.warmup_steps: 10 steps of warm-up in a run of 10 steps; "
        "write fewer, or a share such as 0.03"
    )


def test_documents_longer_than_a_row_are_refused(tmp_path: Path):
    documents = random_documents(14, longest=90)
    with pytest.raises(ConfigError) as caught:
        run(make_config(tmp_path), documents)
    longest = documents.lengths.max()
    assert str(caught.value) == (
        f"training.row_tokens: rows hold 64 tokens, the longest document has {longest}; "
        f"write {longest} or more"
    )


def test_documents_longer_than_the_models_positions_are_refused(tmp_path: Path):
    policy = small_policy(max_position_embeddings=8)
    with pytest.raises(ConfigError) as caught:
        SFTTrainer(make_config(tmp_path), policy=policy, train=random_documents(14))
    assert str(caught.value).startswith("data.max_length: the longest document has ")


def test_exact_match_needs_a_template(tmp_path: Path):
    config = replace(make_config(tmp_path), evaluation=EvaluationConfig(exact_match="plain"))
    with pytest.raises(ConfigError) as caught:
        run(config, random_documents(4))
    assert str(caught.value) == "evaluation.exact_match: no template was given; pass template="


def test_what_a_person_sees_fits_into_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    console = Console(width=80)
    config = make_config(tmp_path, every=5)
    SFTTrainer(config, policy=small_policy(), train=random_documents(14), console=console).train()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("step 10/10  loss ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        curve = losses(run(make_config(Path(folder), num_train_epochs=4), random_documents(15)))
    GOLDEN.write_text(json.dumps(curve, indent=1) + "\n")
