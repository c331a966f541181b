"""Steps whose loss or gradient is not finite are passed over on request; spikes of the loss are noted."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.documents import Documents, random_documents, small_policy
from tests.training.test_trainer import losses, make_config, resume

from finetooth.base.errors import NonFiniteError
from finetooth.model.policy import PolicyModel
from finetooth.training import updates
from finetooth.training.checkpoint import CheckpointManager
from finetooth.training.step import StepResult, train_step
from finetooth.training.trainer import SFTTrainer, TrainResult


def fail_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The losses of these steps are not finite."""

    def failing(*arguments: Any, place: str, **options: Any) -> StepResult:
        if int(place.removeprefix("step ")) in steps:
            raise NonFiniteError(f"{place}: the loss is nan; look")
        return train_step(*arguments, place=place, **options)

    monkeypatch.setattr(updates, "train_step", failing)


def train(folder: Path, documents: Documents, policy: PolicyModel, **training: Any) -> TrainResult:
    return SFTTrainer(make_config(folder, **training), policy=policy, train=documents).train()


def test_a_skipped_step_is_noted_with_its_documents_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    documents = random_documents(14)
    fail_at(monkeypatch, 4)
    result = train(tmp_path, documents, small_policy(), on_non_finite="skip")
    (line,) = (line for line in result.history if "skipped" in line)
    assert line["step"] == 4
    assert line["skipped"][0] == "step 4: the loss is nan; look"
    assert line["skipped"][1].startswith("documents of this step: random.jsonl:")
    assert [each["step"] for each in result.history if "loss" in each] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    before, after = (CheckpointManager(tmp_path / "checkpoints").path_of(step) for step in (3, 4))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes(), name


def test_without_the_setting_the_run_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fail_at(monkeypatch, 4)
    with pytest.raises(NonFiniteError, match="step 4: the loss is nan"):
        train(tmp_path, random_documents(14), small_policy())


def test_skipping_ends_after_ten_steps_also_across_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    documents = random_documents(14)
    fail_at(monkeypatch, *range(2, 30))
    settings = {"num_train_epochs": 4, "on_non_finite": "skip"}
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, documents, small_policy(), **settings)
    sentence = (
        "training.on_non_finite: 10 steps were skipped before this one; "
        "look at their documents in metrics.jsonl, or lower training.learning_rate"
    )
    assert caught.value.problems[0] == "step 12: the loss is nan; look"
    assert caught.value.problems[-1] == sentence
    checkpoint = CheckpointManager(tmp_path / "checkpoints").latest(notify=print)
    assert checkpoint is not None
    assert checkpoint.state.num_skipped == 10
    with pytest.raises(NonFiniteError) as caught:
        resume(make_config(tmp_path, **settings), documents, checkpoint)
    assert caught.value.problems[-1] == sentence


def spoil_loss_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def spoiling(*arguments: Any, place: str, **options: Any) -> StepResult:
        result = train_step(*arguments, place=place, **options)
        spoilt = result.loss + 10 * (place == f"step {step}")
        return StepResult(loss=spoilt, grad_norm=result.grad_norm)

    monkeypatch.setattr(updates, "train_step", spoiling)


def spikes(result: TrainResult) -> list[dict[str, Any]]:
    return [line for line in result.history if "spike" in line]


def test_a_spike_is_noted_with_three_documents_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    documents = random_documents(14)
    spoil_loss_at(monkeypatch, 27)
    settings = {"num_train_epochs": 6, "learning_rate": 1e-4, "min_learning_rate": 0}
    trainer = SFTTrainer(make_config(tmp_path, **settings), policy=small_policy(), train=documents)
    result = trainer.train()
    (line,) = spikes(result)
    origins = {f"random.jsonl:{number + 1}" for number in trainer.schedule.step(27).documents}
    assert line["step"] == 27
    assert {each["origin"] for each in line["spike"]["documents"]} <= origins
    assert len(line["spike"]["documents"]) == min(3, len(origins))
    assert line["spike"]["usual_loss"] == pytest.approx(sorted(losses(result)[:26])[13], rel=0.05)


def test_spikes_can_be_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spoil_loss_at(monkeypatch, 27)
    config = make_config(tmp_path, num_train_epochs=6)
    object.__setattr__(config.logging, "spikes", False)
    assert not spikes(SFTTrainer(config, policy=small_policy(), train=random_documents(14)).train())


def test_a_resumed_run_holds_losses_against_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    documents = random_documents(14)
    settings = {"num_train_epochs": 6, "learning_rate": 1e-4, "min_learning_rate": 0}
    spoil_loss_at(monkeypatch, 27)
    whole = train(tmp_path, documents, small_policy(), **settings)
    for step in range(26, 31):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:06d}")
    checkpoint = CheckpointManager(tmp_path / "checkpoints").latest(notify=print)
    assert checkpoint is not None
    resumed = resume(make_config(tmp_path, **settings), documents, checkpoint)
    assert [line["spike"] for line in spikes(resumed)] == [line["spike"] for line in spikes(whole)]
    assert len(spikes(whole)) == 1
