"""The best evaluation, and a run that ends where none better comes, after whatever interruption."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.documents import Documents, random_documents, small_policy
from tests.ranks import on_ranks
from transformers import AutoModelForCausalLM

from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import ConfigError, FinetoothError
from finetooth.base.stopping import CutShort
from finetooth.config.schema import (
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ParallelConfig,
    SFTConfig,
    TrainingConfig,
)
from finetooth.data.records import Document
from finetooth.model.policy import PolicyModel
from finetooth.training.best import with_evaluation
from finetooth.training.checkpoint import Checkpoint, CheckpointManager, TrainingState, read_state
from finetooth.training.examination import Examination
from finetooth.training.trainer import SFTTrainer, TrainResult

DOCUMENTS, DEV = random_documents(14), random_documents(5, seed=1)
NUM_STEPS = 10
# Lowest at step 4, after which two evaluations in a row are not better; a lower one would follow.
COURSE = {0: 1.0, 1: 9.0, 2: 8.0, 3: 8.5, 4: 7.0, 5: 7.0, 6: 7.5, 7: 3.0, 8: 2.0, 9: 2.0, 10: 1.0}
END = 6
WHY = "step 6 of 10: no better dev_loss in 2 evaluations since step 4"


def make_config(folder: Path, *, patience: int | None = 2, keep: int = 100, **evaluation: Any) -> SFTConfig:
    settings = {"every": 1, "train_documents": 4, "patience": patience, **evaluation}
    return SFTConfig(
        model=ModelConfig(path="unused"),
        data=DataConfig(train="unused", max_length=64),
        training=TrainingConfig(
            num_train_epochs=2, global_batch_size=3, warmup_steps=0, row_tokens=64, device="cpu"
        ),
        evaluation=EvaluationConfig(**settings),
        checkpoints=CheckpointsConfig(every=1, keep=keep),
        output_dir=str(folder),
    )


def follow(patch: pytest.MonkeyPatch, course: Mapping[int, float], *, name: str = "dev_loss") -> None:
    """Lets evaluations find the figures of a course."""

    def examine(self: Examination, step: int, **_: object) -> dict[str, float]:
        return {"train_loss": 5.0, name: course[step]}

    patch.setattr(Examination, "examine", examine)


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, COURSE)


def trainer_of(config: SFTConfig, *, dev: Documents | None = DEV, ranks: Ranks = ALONE) -> SFTTrainer:
    return SFTTrainer(config, policy=small_policy(), train=DOCUMENTS, dev=dev, ranks=ranks)


def behind(config: SFTConfig, step: int, *, accept_changes: bool = False, ranks: Ranks = ALONE) -> SFTTrainer:
    """A trainer that goes on in the same folder behind a step's checkpoint."""
    folder = CheckpointManager(Path(config.output_dir) / "checkpoints").path_of(step)
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(folder))
    trainer = SFTTrainer(config, policy=policy, train=DOCUMENTS, dev=DEV, ranks=ranks)
    trainer.take_up(Checkpoint(folder, read_state(folder)), accept_changes=accept_changes)
    return trainer


def evaluated(result: TrainResult) -> list[int]:
    return [line["step"] for line in result.history if "train_loss" in line]


def standing(trainer: SFTTrainer) -> tuple[Any, ...]:
    state = trainer.state
    return state.next_step - 1, state.best_step, state.best_value, state.num_since_best, state.evaluated


@pytest.mark.parametrize("name", ["dev_loss", "dev_perplexity", "train_perplexity", "loop_rate"])
def test_the_lowest_is_the_best_and_of_equal_ones_the_earlier(name: str):
    state = TrainingState(next_step=1, identity={})
    for step, value in enumerate([0.1, 0.5, 0.4, 0.4, 0.6, 0.3, 0.3]):
        state = with_evaluation(state, {"step": step, name: value}, by=name)
    assert (state.best_step, state.best_value, state.num_since_best) == (5, 0.3, 1)


@pytest.mark.parametrize("name", ["exact_match", "stop_rate"])
def test_the_highest_is_the_best_and_of_equal_ones_the_earlier(name: str):
    state = TrainingState(next_step=1, identity={})
    for step, value in enumerate([0.9, 0.5, 0.6, 0.6, 0.1]):
        state = with_evaluation(state, {"step": step, name: value}, by=name)
    assert (state.best_step, state.best_value, state.num_since_best) == (2, 0.6, 2)


@pytest.mark.usefixtures("course")
def test_a_run_ends_where_none_better_comes_and_keeps_the_best(tmp_path: Path):
    trainer = trainer_of(make_config(tmp_path, keep=1))
    result = trainer.train()
    assert (result.last_step, result.stopped, trainer.ended_early) == (END, None, WHY)
    assert evaluated(result) == list(range(END + 1))
    checkpoints = tmp_path / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-000004", "step-000006"]
    assert os.readlink(checkpoints / "best") == "step-000004"
    assert (trainer.final_step, trainer.is_finished) == (4, True)


@pytest.mark.usefixtures("course")
@pytest.mark.parametrize("patience", [None, 3])
def test_with_more_patience_it_goes_on(tmp_path: Path, patience: int | None):
    """Negative control: it is the third evaluation after the best one that is better again."""
    trainer = trainer_of(make_config(tmp_path, patience=patience))
    assert trainer.train().last_step == NUM_STEPS
    assert (trainer.ended_early, trainer.state.best_step) == (None, 10)


@pytest.mark.usefixtures("course")
@pytest.mark.parametrize(
    ("final", "patience", "step"),
    [("auto", None, 10), ("auto", 2, 4), ("last", 2, 6), ("best", None, 9)],
)
def test_final_is_the_best_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: Any, patience: int | None, step: int
):
    follow(monkeypatch, {**COURSE, 9: 0.5})
    config = make_config(tmp_path, patience=patience)
    trainer = trainer_of(replace(config, checkpoints=replace(config.checkpoints, final=final)))
    trainer.train()
    assert trainer.final_step == step


@pytest.mark.usefixtures("course")
def test_resumed_behind_any_step_it_ends_after_the_same_one(tmp_path: Path):
    config = make_config(tmp_path)
    whole = trainer_of(config)
    history = whole.train().history
    figures = [{k: v for k, v in line.items() if k in ("step", "loss", "dev_loss")} for line in history]
    for step in range(END - 1, 0, -1):
        again = behind(config, step)
        result = again.train()
        assert standing(again) == standing(whole) == (END, 4, 7.0, 2, END)
        assert [
            {k: v for k, v in line.items() if k in ("step", "loss", "dev_loss")} for line in result.history
        ] == figures
    assert behind(config, END).ended_early == WHY


@pytest.mark.usefixtures("course")
def test_a_run_that_has_ended_early_trains_no_more(tmp_path: Path):
    config = make_config(tmp_path)
    history = trainer_of(config).train().history
    again = behind(config, END)
    assert (again.is_finished, again.final_step) == (True, 4)
    result = again.train()
    assert (result.last_step, result.history) == (END, history)


@pytest.mark.usefixtures("course")
@pytest.mark.parametrize("killed_at", [4, 5, 6])
def test_a_kill_between_evaluation_and_save_costs_no_patience(tmp_path: Path, killed_at: int):
    """The evaluation stands in metrics.jsonl, and no checkpoint knows of it."""
    config = make_config(tmp_path)
    killed_in_a_save(trainer_of(config), killed_at)
    again = behind(config, killed_at - 1)
    assert evaluated(again.train()) == list(range(END + 1))
    assert standing(again) == (END, 4, 7.0, 2, END)


def killed_in_a_save(trainer: SFTTrainer, step: int) -> None:
    """Trains until the checkpoint of a step is to be written, and no further."""
    real = CheckpointManager.save

    def save(self: CheckpointManager, state: TrainingState, **options: Any) -> Path:
        if state.next_step - 1 == step:
            raise FinetoothError("killed")
        return real(self, state, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "save", save)
        with pytest.raises(FinetoothError, match="killed"):
            trainer.train()


def test_an_evaluation_that_was_made_up_for_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = make_config(tmp_path)
    made_up_for_and_killed(config, monkeypatch)
    assert read_state(tmp_path / "checkpoints" / "step-000005").evaluated == 4
    again = behind(config, 5)
    assert evaluated(again.train()) == list(range(END + 1))
    assert standing(again) == (END, 4, 7.0, 2, END)


def test_without_the_note_of_the_last_evaluation_one_would_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control: metrics.jsonl alone, as an older version looked at it, says that it was made."""
    config = make_config(tmp_path)
    made_up_for_and_killed(config, monkeypatch)
    again = behind(config, 5)
    again.state = replace(again.state, evaluated=None)
    again.train()
    assert standing(again)[0] != END


def made_up_for_and_killed(config: SFTConfig, patch: pytest.MonkeyPatch) -> None:
    """A signal cuts the evaluation of step 5 short; what makes up for it is killed before it saves."""
    cut_short(patch, 5)
    trainer_of(config).train()
    follow(patch, COURSE)
    killed_in_a_save(behind(config, 5), 5)


def cut_short(patch: pytest.MonkeyPatch, step: int) -> None:
    """A stop is asked for, and found, within the evaluation of this step."""
    reached: list[int] = []

    def examine(self: Examination, number: int, **_: object) -> dict[str, float]:
        reached.append(number)
        if number == step:
            raise CutShort
        return {"train_loss": 5.0, "dev_loss": COURSE[number]}

    patch.setattr(Examination, "examine", examine)
    patch.setattr(SFTTrainer, "_agree_on_stop", lambda *_: 75 if step in reached else None)


@pytest.mark.usefixtures("course")
def test_a_finished_run_goes_on_with_more_patience_once_that_is_accepted(tmp_path: Path):
    trainer_of(make_config(tmp_path)).train()
    longer = make_config(tmp_path, patience=3)
    with pytest.raises(ConfigError) as caught:
        behind(longer, END)
    folder = tmp_path / "checkpoints" / "step-000006"
    assert str(caught.value).split("\n") == [
        f"evaluation.patience: 3 here, 2 in {folder}; undo the change",
        "output_dir: a run with other settings cannot go on here; "
        "undo the change, name another folder, or accept the change with --accept-changes",
    ]
    again = behind(longer, END, accept_changes=True)
    assert not again.is_finished
    result = again.train()
    assert (result.last_step, again.state.best_step) == (NUM_STEPS, 10)
    assert {"step": 7, "changes": {"evaluation.patience": {"before": 2, "now": 3}}} in result.history


@pytest.mark.usefixtures("course")
def test_more_steps_alone_do_not_outlast_the_patience(tmp_path: Path):
    config = make_config(tmp_path)
    trainer_of(config).train()
    longer = replace(config, training=replace(config.training, max_steps=20))
    again = behind(longer, END, accept_changes=True)
    assert again.ended_early == WHY.replace("of 10", "of 20")


@pytest.mark.usefixtures("course")
def test_by_another_figure_the_best_is_looked_for_anew(tmp_path: Path):
    trainer_of(make_config(tmp_path)).train()
    other = make_config(tmp_path, best_by="train_loss")
    with pytest.raises(ConfigError, match=r"^evaluation\.best_by: train_loss here, dev_loss in "):
        behind(other, 5)
    again = behind(other, 5, accept_changes=True)
    assert (again.state.best_step, again.state.num_since_best) == (None, 0)
    again.train()
    assert standing(again)[:4] == (8, 6, 5.0, 2)


@pytest.mark.parametrize(
    ("settings", "change", "name"),
    [
        ({"best_by": "train_loss"}, {"train_documents": 5}, "evaluation.train_documents"),
        ({"patience": 2}, {"every": 2}, "evaluation.every"),
    ],
)
@pytest.mark.usefixtures("course")
def test_what_decides_which_is_best_or_where_it_ends_is_refused(
    tmp_path: Path, settings: dict[str, Any], change: dict[str, Any], name: str
):
    trainer_of(make_config(tmp_path, **settings)).train()
    with pytest.raises(ConfigError, match=f"^{name}: "):
        behind(make_config(tmp_path, **{**settings, **change}), 2)


@pytest.mark.usefixtures("course")
def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path):
    config = make_config(tmp_path, patience=None)
    trainer_of(config).train()
    file = tmp_path / "checkpoints" / "step-000005" / "state.json"
    fields = json.loads(file.read_text())
    fields["best_dev_loss"] = fields.pop("best_value")
    for name in ("num_since_best", "evaluated"):
        fields.pop(name)
    for name in [name for name in fields["identity"] if name.startswith("evaluation.")]:
        fields["identity"].pop(name)
    file.write_text(json.dumps(fields))
    state = read_state(file.parent)
    assert (state.best_step, state.best_value, state.num_since_best, state.evaluated) == (4, 7.0, 0, None)
    again = behind(config, 5)
    assert again.changes == []
    assert evaluated(again.train()) == list(range(NUM_STEPS + 1))


def test_a_figure_that_cannot_be_measured_is_told_at_once(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        trainer_of(make_config(tmp_path), dev=None)
    assert str(caught.value) == (
        "evaluation.patience: there are no dev records, so no dev_loss is measured; "
        "write evaluation.best_by: train_loss, or leave it out"
    )
    trainer_of(make_config(tmp_path, best_by="train_loss"), dev=None)
    trainer_of(make_config(tmp_path, patience=None), dev=None)


def test_answers_are_no_figure_where_no_dev_record_has_a_prompt(tmp_path: Path):
    plain = Documents([replace_prompt(document, 0) for document in DEV.documents])
    config = make_config(tmp_path, best_by="stop_rate", exact_match="plain")
    trainer = {"policy": small_policy(), "train": DOCUMENTS, "template": object()}
    with pytest.raises(ConfigError) as caught:
        SFTTrainer(config, dev=plain, **trainer)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "evaluation.patience: no dev record that is asked has a prompt, so no stop_rate is measured; "
        "write evaluation.best_by: dev_loss"
    )


def replace_prompt(document: Document, length: int) -> Document:
    return replace(document, prompt_length=length)


def ended_on_ranks(ranks: Ranks, folder: Path) -> list[tuple[Any, ...]]:
    """Where a run of two ranks ends, and one resumed in its midst, plain and with shared parameters."""
    told: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        follow(patch, COURSE)
        for shard in (None, "all"):
            config = make_config(folder / str(shard))
            config = replace(config, parallel=ParallelConfig(shard=shard))  # type: ignore[arg-type]
            trainer = trainer_of(config, ranks=ranks)
            result = trainer.train()
            told.append((*standing(trainer), result.stopped, trainer.final_step))
            again = behind(config, 5, ranks=ranks)
            result = again.train()
            told.append((*standing(again), result.stopped, again.final_step))
    return told


def test_all_ranks_end_after_the_same_step(tmp_path: Path):
    for told in on_ranks(ended_on_ranks, tmp_path, world_size=2):
        assert told == [(END, 4, 7.0, 2, END, None, 4)] * 4
