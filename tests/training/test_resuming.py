"""Going on with a run: the same bits on the same ranks; changes are refused by name, or accepted and told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.documents import Documents, random_documents, save_small_model, small_policy
from tests.ranks import on_ranks
from transformers import AutoModelForCausalLM

from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import ConfigError, FinetoothError, NonFiniteError
from finetooth.config.schema import (
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    ParallelConfig,
    SFTConfig,
    TrainingConfig,
)
from finetooth.model.policy import PolicyModel
from finetooth.training.checkpoint import Checkpoint, CheckpointManager, TrainingState
from finetooth.training.parallel import whole
from finetooth.training.resuming import _DEFAULTS, changes_since
from finetooth.training.trainer import SFTTrainer, TrainResult

SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "global_batch_size": 3,
    "learning_rate": 3e-3,
    "min_learning_rate": 3e-4,
    "warmup_steps": 2,
    "row_tokens": 64,
    "device": "cpu",
    "precision": "fp32",
}
DOCUMENTS = random_documents(14)
DEV = random_documents(5, seed=1)
NUM_STEPS, MIDDLE = 10, 4


def make_config(folder: Path, *, base: str = "unused", **training: Any) -> SFTConfig:
    return SFTConfig(
        model=ModelConfig(path=base),
        data=DataConfig(train="unused", max_length=64),
        training=TrainingConfig(**{**SETTINGS, **training}),
        evaluation=EvaluationConfig(every=4, train_documents=4),
        checkpoints=CheckpointsConfig(every=1, keep=100),
        output_dir=str(folder),
    )


def at(folder: Path, step: int) -> Checkpoint:
    place = folder / "checkpoints" / f"step-{step:06d}"
    return Checkpoint(place, TrainingState(**json.loads((place / "state.json").read_text())))


def trainer_behind(
    checkpoint: Checkpoint,
    config: SFTConfig,
    *,
    documents: Documents = DOCUMENTS,
    dev: Documents | None = DEV,
    accept_changes: bool = False,
    ranks: Ranks = ALONE,
    console: Console | None = None,
) -> SFTTrainer:
    policy = PolicyModel(AutoModelForCausalLM.from_pretrained(checkpoint.folder))
    trainer = SFTTrainer(config, policy=policy, train=documents, dev=dev, ranks=ranks, console=console)
    trainer.take_up(checkpoint, accept_changes=accept_changes)
    return trainer


def losses(result: TrainResult) -> list[float]:
    return [line["loss"] for line in result.history if "loss" in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten steps, each of them saved, from a base model in a folder."""
    folder = tmp_path_factory.mktemp("resuming")
    base = str(save_small_model(folder / "base"))
    config = make_config(folder / "run", base=base)
    result = SFTTrainer(config, policy=small_policy(), train=DOCUMENTS, dev=DEV).train()
    assert result.last_step == NUM_STEPS
    return folder


CHANGES: dict[str, dict[str, Any]] = {
    "training.seed": {"seed": 1},
    "training.global_batch_size": {"global_batch_size": 4, "max_steps": NUM_STEPS},
    "training.global_batch_tokens": {"global_batch_tokens": 40, "max_steps": NUM_STEPS},
    "training.learning_rate": {"learning_rate": 4e-3},
    "training.min_learning_rate": {"min_learning_rate": 0.0},
    "training.lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "training.weight_decay": {"weight_decay": 0.5},
    "training.adam_beta1": {"adam_beta1": 0.8},
    "training.adam_beta2": {"adam_beta2": 0.9},
    "training.adam_epsilon": {"adam_epsilon": 1e-6},
    "training.max_grad_norm": {"max_grad_norm": None},
    "training.dropout": {"dropout": 0.1},
    "training.on_non_finite": {"on_non_finite": "skip"},
    "number of steps": {"num_train_epochs": 3},
    "steps of warm-up": {"warmup_steps": 3},
    "precision": {"precision": "bf16"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_changed_setting_is_refused_by_its_name(trained: Path, tmp_path: Path, name: str):
    config = make_config(tmp_path, base=str(trained / "base"), **CHANGES[name])
    checkpoint = at(trained / "run", MIDDLE)
    with pytest.raises(ConfigError) as caught:
        trainer_behind(checkpoint, config)
    assert [line.partition(":")[0] for line in caught.value.problems] == [name, "output_dir"]
    trainer_behind(checkpoint, config, accept_changes=True)


def test_every_setting_of_training_decides_or_is_known_not_to():
    """A setting of tomorrow is part of the identity until somebody says that it decides nothing."""
    named = {name.removeprefix("training.") for name in CHANGES}
    free = {"packing", "row_tokens", "rows_at_once", "recompute", "compile", "device"}
    told_otherwise = {"num_train_epochs", "max_steps", "warmup_steps", "optimizer"}
    assert {name.removeprefix("training.") for name in _DEFAULTS} <= named | free | told_otherwise


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("training.optimizer", {"optimizer": "adamw_8bit"}, "adamw_8bit here, adamw in"),
        ("precision", {"precision": "bf16-pure"}, "bf16-pure here, fp32 in"),
    ],
)
def test_states_of_another_form_cannot_be_accepted(
    trained: Path, tmp_path: Path, name: str, changes: dict[str, Any], told: str
):
    config = make_config(tmp_path, base=str(trained / "base"), **changes)
    checkpoint = at(trained / "run", MIDDLE)
    with pytest.raises(ConfigError) as caught:
        trainer_behind(checkpoint, config)
    assert [line.partition(":")[0] for line in caught.value.problems] == [name, "output_dir"]
    with pytest.raises(ConfigError) as caught:
        trainer_behind(checkpoint, config, accept_changes=True)
    remedy = "undo the change, or name another output_dir; --accept-changes cannot bridge it"
    assert str(caught.value) == f"{name}: {told} {checkpoint.folder}; {remedy}"


def test_other_records_and_another_base_are_refused_by_name(trained: Path, tmp_path: Path):
    other_base = save_small_model(tmp_path / "base", seed=5)
    moved_base = shutil.copytree(trained / "base", tmp_path / "moved")
    checkpoint = at(trained / "run", MIDDLE)
    config = make_config(tmp_path / "run", base=str(trained / "base"))
    cases: list[tuple[str, SFTConfig, Documents, Documents | None]] = [
        ("training documents", config, random_documents(14, seed=9), DEV),
        ("dev documents", config, DOCUMENTS, random_documents(5, seed=9)),
        ("dev documents", config, DOCUMENTS, None),
        ("base model", make_config(tmp_path / "run", base=str(other_base)), DOCUMENTS, DEV),
    ]
    for name, changed, documents, dev in cases:
        with pytest.raises(ConfigError) as caught:
            trainer_behind(checkpoint, changed, documents=documents, dev=dev)
        assert [line.partition(":")[0] for line in caught.value.problems] == [name, "output_dir"]
    trainer_behind(checkpoint, make_config(tmp_path / "run", base=str(moved_base)))


def test_changed_documents_are_refused_with_the_settings_that_make_them(trained: Path, tmp_path: Path):
    config = make_config(tmp_path, base=str(trained / "base"))
    shorter = replace(config, data=replace(config.data, max_length=32, system="Be brief."))
    checkpoint = at(trained / "run", MIDDLE)
    with pytest.raises(ConfigError) as caught:
        trainer_behind(checkpoint, shorter, documents=random_documents(14, seed=9))
    remedy = "undo the change"
    assert caught.value.problems[:-1] == [
        f"training documents: others than those of {checkpoint.folder}; {remedy}",
        f"data.system: Be brief. here, null in {checkpoint.folder}; {remedy}",
        f"data.max_length: 32 here, 64 in {checkpoint.folder}; {remedy}",
    ]
    trainer_behind(checkpoint, shorter)  # the same documents


def test_what_decides_nothing_may_change(trained: Path, tmp_path: Path):
    layout: dict[str, Any] = {"packing": False, "row_tokens": 200, "rows_at_once": 3, "recompute": "all"}
    config = make_config(tmp_path, base=str(trained / "base"), **layout)
    config = replace(
        config,
        logging=LoggingConfig(every=3),
        checkpoints=CheckpointsConfig(every=0, keep=1, background=False),
        evaluation=EvaluationConfig(every=1),
        parallel=ParallelConfig(timeout=60),
    )
    trainer = trainer_behind(at(trained / "run", MIDDLE), config)
    assert trainer.changes == []
    expected = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = {line["step"]: line["loss"] for line in expected if "loss" in line}
    for line in trainer.train().history:
        if "loss" in line:
            assert line["loss"] == pytest.approx(expected[line["step"]], rel=1e-6)


def test_a_checkpoint_of_an_older_version_lacks_newer_settings(trained: Path, tmp_path: Path):
    checkpoint = at(trained / "run", MIDDLE)
    identity = {
        name: value for name, value in checkpoint.state.identity.items() if name != "training.dropout"
    }
    older = replace(checkpoint, state=replace(checkpoint.state, identity=identity))
    config = make_config(tmp_path, base=str(trained / "base"))
    trainer_behind(older, config)
    with pytest.raises(ConfigError, match=r"^training\.dropout: 0\.1 here, 0\.0 in "):
        trainer_behind(older, replace(config, training=replace(config.training, dropout=0.1)))


def test_an_accepted_change_is_told_and_recorded(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    config = make_config(tmp_path / "run", base=str(trained / "base"), learning_rate=1e-3, num_train_epochs=3)
    checkpoint = at(tmp_path / "run", MIDDLE)
    trainer = trainer_behind(checkpoint, config, accept_changes=True, console=Console(width=80))
    result = trainer.train()
    assert result.last_step == 15
    lines = capsys.readouterr().out
    assert "from step 5 on: training.learning_rate 0.001 instead of 0.003\n" in lines
    told = "from step 5 on: number of steps 15 instead of 10; the learning rate now follows the course of 15"
    assert told in lines.replace("\n", " ")
    (line,) = [line for line in result.history if "changes" in line]
    assert line == {
        "step": MIDDLE + 1,
        "changes": {
            "number of steps": {"before": 10, "now": 15},
            "training.learning_rate": {"before": 3e-3, "now": 1e-3},
        },
    }
    updates = [line for line in result.history if "loss" in line]
    assert [line["step"] for line in updates] == list(range(1, 16))
    assert [line["learning_rate"] for line in updates[MIDDLE:]] == [
        trainer.updates.learning_rate(step) for step in range(MIDDLE + 1, 16)
    ]
    assert updates[-1]["learning_rate"] == 3e-4, "the course ends at the new end"
    assert changes_since(at(tmp_path / "run", 15), trainer.identity()) == [], "they are no change any more"
    assert len(list((tmp_path / "run" / "checkpoints").glob("aside-*"))) == 6


def test_a_finished_run_can_be_made_longer_and_none_shorter_than_it_is(trained: Path, tmp_path: Path):
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    last = at(tmp_path / "run", NUM_STEPS)
    config = make_config(tmp_path / "run", base=str(trained / "base"), max_steps=12)
    assert trainer_behind(last, config, accept_changes=True).train().last_step == 12
    shorter = make_config(tmp_path / "run", base=str(trained / "base"), max_steps=9)
    with pytest.raises(ConfigError) as caught:
        trainer_behind(last, shorter, accept_changes=True)
    assert str(caught.value) == (
        f"number of steps: 9 here, and {last.folder} has done 10; "
        "raise training.max_steps or training.num_train_epochs"
    )


def test_the_best_is_found_anew_where_it_is_gone_or_dev_changed(trained: Path, tmp_path: Path):
    checkpoint = at(trained / "run", NUM_STEPS)
    best = checkpoint.state.best_step
    assert best is not None
    config = make_config(trained / "run", base=str(trained / "base"))
    assert trainer_behind(checkpoint, config).state.best_step == best
    other_dev = trainer_behind(checkpoint, config, dev=random_documents(5, seed=9), accept_changes=True)
    assert (other_dev.state.best_step, other_dev.state.best_value) == (None, None)
    elsewhere = make_config(tmp_path, base=str(trained / "base"))
    assert trainer_behind(checkpoint, elsewhere).state.best_step is None


def test_a_save_that_fails_ends_the_run_with_the_last_good_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = make_config(tmp_path, base=str(trained / "base"))
    trainer = SFTTrainer(config, policy=small_policy(), train=DOCUMENTS)
    real = CheckpointManager._write

    def fail(self: CheckpointManager, path: Path, *arguments: Any) -> None:
        if path.name == "step-000003":
            raise FinetoothError("checkpoints: no room")
        real(self, path, *arguments)

    monkeypatch.setattr(CheckpointManager, "_write", fail)
    with pytest.raises(FinetoothError, match="checkpoints: no room"):
        trainer.train()
    assert trainer.state.next_step - 1 in (3, 4), "at the next step, or at the save after it"
    found = CheckpointManager(tmp_path / "checkpoints").latest(notify=pytest.fail)
    assert found is not None
    assert found.state.next_step - 1 == 2


def test_a_state_that_is_not_finite_ends_the_run_with_the_last_good_checkpoint(tmp_path: Path):
    config = replace(make_config(tmp_path), evaluation=EvaluationConfig(every=0, train_documents=4))
    trainer = SFTTrainer(config, policy=small_policy(), train=DOCUMENTS)
    norm = trainer.policy.model.get_parameter("model.norm.weight")
    update = trainer.optimizer.step

    def poison(*arguments: Any) -> None:
        update(*arguments)
        if trainer.state.next_step == 3:
            trainer.optimizer.state[norm]["exp_avg"][0] = torch.nan

    trainer.optimizer.step = poison  # type: ignore[method-assign]
    with pytest.raises(
        NonFiniteError, match=r"exp_avg\.model\.norm\.weight would hold a value that is not finite"
    ):
        trainer.train()
    found = CheckpointManager(tmp_path / "checkpoints").latest(notify=pytest.fail)
    assert found is not None
    assert found.state.next_step - 1 == 2


def run_and_resume(ranks: Ranks, folder: Path, shard: Any) -> dict[str, Any]:
    """A whole run, the same one taken up in the middle, and the first loss after taking up `alone`'s."""
    config = replace(make_config(folder / f"whole-{shard}"), parallel=ParallelConfig(shard=shard))
    whole_run = SFTTrainer(config, policy=small_policy(), train=DOCUMENTS, ranks=ranks)
    first = whole_run.train()
    again = replace(config, output_dir=str(folder / f"again-{shard}"))
    checkpoint = at(folder / f"whole-{shard}", MIDDLE)
    second = trainer_behind(checkpoint, again, dev=None, ranks=ranks)
    second.train()
    pairs = zip(whole_run.policy.parameters(), second.policy.parameters(), strict=True)
    same = [torch.equal(whole(ours), whole(theirs)) for ours, theirs in pairs]
    states = [
        torch.equal(whole(whole_run.optimizer.state[p][key]), whole(second.optimizer.state[q][key]))
        for p, q in zip(whole_run.policy.parameters(), second.policy.parameters(), strict=True)
        for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    elsewhere = replace(config, output_dir=str(folder / f"elsewhere-{shard}"))
    other = trainer_behind(at(folder / "alone", MIDDLE), elsewhere, dev=None, ranks=ranks)
    other_losses = losses(other.train())
    return {"same": all(same) and all(states), "losses": losses(first), "other_losses": other_losses}


def run_both_ways(ranks: Ranks, folder: Path) -> list[dict[str, Any]]:
    return [run_and_resume(ranks, folder, shard) for shard in (None, "all")]


def test_two_ranks_resume_to_the_bit_and_go_on_behind_one_process(tmp_path: Path):
    alone = SFTTrainer(make_config(tmp_path / "alone"), policy=small_policy(), train=DOCUMENTS).train()
    for told, *_ in zip(*on_ranks(run_both_ways, tmp_path, world_size=2), strict=True):
        assert told["same"]
        assert told["losses"] == pytest.approx(losses(alone), rel=1e-6)
        assert told["other_losses"] == pytest.approx(losses(alone)[MIDDLE:], rel=1e-6)
    for shard in (None, "all"):
        config = make_config(tmp_path / f"one-behind-{shard}")
        one = trainer_behind(at(tmp_path / f"whole-{shard}", MIDDLE), config, dev=None).train()
        assert losses(one) == pytest.approx(losses(alone)[MIDDLE:], rel=1e-6)
