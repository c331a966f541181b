"""A run that ends early, or whose final/ is the best policy: what directory, card and report say of it."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.legacy_systems import per_head_file
from tests.ranks import on_ranks
from tests.small_run import write_run
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from finetooth.arguments import spell_out_resume
from finetooth.base.distributed import Notices, Ranks
from finetooth.base.errors import FinetoothError
from finetooth.base.files import check_folder
from finetooth.cli import app
from finetooth.config.load import load_config
from finetooth.train import train
from finetooth.training.examination import Examination

# By dev loss the second evaluation is the best, and two behind it are worse.
COURSE = {0: 9.0, 2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 1.0}
WHY = "step 8 of 10: no better dev_loss in 2 evaluations since step 4"
SHORT_COURSE = {0: 9.0, 1: 2.0, 2: 3.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"max_steps": 10},
    "evaluation": {"every": 2, "patience": 2},
    "checkpoints": {"every": 2, "keep": 1},
}


def command(*arguments: str) -> Result:
    spelled = spell_out_resume(["train", "run.yaml", *arguments])
    return CliRunner().invoke(app, spelled, prog_name="finetooth", env={"COLUMNS": "200"})


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@contextlib.contextmanager
def following(course: Mapping[int, float]) -> Iterator[None]:
    def examine(self: Examination, step: int, **_: object) -> dict[str, float]:
        return {"train_loss": 7.5, "train_perplexity": 1.0, "dev_loss": course[step], "dev_perplexity": 1.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examination, "examine", examine)
        yield


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in `run/` that has ended early, and what it printed."""
    folder = tmp_path_factory.mktemp("ended")
    with contextlib.chdir(folder), following(COURSE):
        write_run(folder, **SETTINGS)
        result = command()
        assert result.exit_code == 0, result.output
        (folder / "printed.txt").write_text(result.stdout)
    return folder


@pytest.fixture
def folder(ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which commands run."""
    copied = shutil.copytree(ended, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(copied)
    return copied


def test_it_says_why_and_after_which_step_it_ended(ended: Path):
    lines = (ended / "printed.txt").read_text().splitlines()
    assert f"ended early after {WHY}" in lines
    assert "policy: run/final (step 4, the best by dev_loss)" in lines
    summary = read_json(ended / "run" / "summary.json")
    expected = {"state": "finished", "num_steps": 8, "final_step": 4, "best_step": 4, "best_by": "dev_loss"}
    assert {name: summary[name] for name in expected} == expected
    assert (summary["ended_early"], summary["dev_loss"]) == (WHY, 2.0)
    report = (ended / "run" / "report.html").read_text()
    assert "8 of 10 steps" in report
    assert f"ended early after {WHY}" in report
    assert "final/ holds step 4, the best by dev_loss" in report
    assert "The step with the best dev loss is set in bold." in report


def test_final_holds_the_bits_of_the_best_checkpoint_and_its_figures(ended: Path):
    final, best = ended / "run" / "final", ended / "run" / "checkpoints" / "step-000004"
    assert check_folder(final) == []
    assert (final / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    last = ended / "run" / "checkpoints" / "step-000008"
    assert (final / "model.safetensors").read_bytes() != (last / "model.safetensors").read_bytes()
    assert not [path.name for path in final.iterdir() if path.name.startswith(("optimizer", "state"))]
    assert read_json(final / "generation_config.json")["eos_token_id"]
    card = (final / "README.md").read_text()
    assert "The policy is that of step 4, the best by `dev_loss`.\n" in card
    assert "| loss, held-out records | 9 | 2 |" in card


def test_a_run_that_ended_early_is_finished(folder: Path):
    before = {path: path.read_bytes() for path in sorted((folder / "run").rglob("*")) if path.is_file()}
    with following(COURSE):
        result = command("--resume", "auto")
    assert result.exit_code == 0
    finished, why = result.stdout.splitlines()[-2:]
    assert finished.endswith("; this run was finished already")
    assert why == f"it ended early after {WHY}; to go on, raise evaluation.patience and add --accept-changes"
    assert {
        path: path.read_bytes() for path in sorted((folder / "run").rglob("*")) if path.is_file()
    } == before


def test_with_more_patience_it_goes_on_to_its_end(folder: Path):
    with following(COURSE):
        result = command("--resume", "--accept-changes", "patience=3")
    assert result.exit_code == 0
    summary = read_json(folder / "run" / "summary.json")
    assert (summary["num_steps"], summary["final_step"], summary["dev_loss"]) == (10, 10, 1.0)
    assert "ended_early" not in summary
    assert "from step 9 on: evaluation.patience 3 instead of 2\n" in result.stdout


def test_a_finished_run_gives_the_other_policy_when_it_is_asked(folder: Path):
    with following(COURSE):
        result = command("--resume", "checkpoints.final=last")
    assert result.exit_code == 0
    assert "policy: run/final (step 8, the last)\n" in result.stdout
    final, last = folder / "run" / "final", folder / "run" / "checkpoints" / "step-000008"
    assert (final / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert read_json(folder / "run" / "summary.json")["final_step"] == 8
    assert "The policy is that of step" not in (final / "README.md").read_text()


def test_killed_before_final_it_is_written_by_the_next_start(folder: Path):
    whole = (folder / "run" / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "run" / "final")
    (folder / "run" / "summary.json").unlink()
    with following(COURSE):
        assert command("--resume").exit_code == 0
    assert (folder / "run" / "final" / "model.safetensors").read_bytes() == whole
    assert read_json(folder / "run" / "summary.json")["ended_early"] == WHY


def test_a_best_checkpoint_that_is_damaged_or_gone_is_told(folder: Path):
    best = folder / "run" / "checkpoints" / "step-000004"
    shutil.rmtree(folder / "run" / "final")
    (best / "config.json").write_text("{}")
    with following(COURSE):
        result = command("--resume")
    assert (result.exit_code, result.stderr) == (
        1,
        "run/checkpoints/step-000004: damaged: config.json: 2 bytes instead of "
        f"{size_in_manifest(best, 'config.json')}; "
        "restore it, or write checkpoints.final: last and go on with --resume\n",
    )
    shutil.rmtree(best)
    with following(COURSE):
        result = command("--resume", "max_steps=8", "--accept-changes")
    assert result.stderr == "checkpoints.final: the checkpoint of the best evaluation is gone; write last\n"
    assert result.exit_code == 2


def size_in_manifest(folder: Path, name: str) -> int:
    return read_json(folder / "MANIFEST.json")["files"][name]["size"]


def test_a_sanity_run_knows_no_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    exam = {"exact_match": "plain", "best_by": "exact_match"}
    write_run(tmp_path, **{**SETTINGS, "evaluation": {**SETTINGS["evaluation"], **exam}})
    assert command("--overfit", "4", "max_steps=3").exit_code == 0
    summary = read_json(tmp_path / "run" / "summary.json")
    assert (summary["num_steps"], summary["final_step"], summary["best_step"]) == (3, 3, None)


def test_an_adapter_and_a_head_with_a_bias_are_taken_from_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, **SETTINGS, adapter={"type": "lora", "r": 2})
    with following(COURSE):
        assert command().exit_code == 0
    final, best = tmp_path / "run" / "final", tmp_path / "run" / "checkpoints" / "step-000004"
    name = "adapter_model.safetensors"
    assert (final / name).read_bytes() == (best / name).read_bytes()
    per_head_file(tmp_path / "ckpt.pt")
    other = {"model": {"path": "ckpt.pt", "tokenizer": "base"}, "output_dir": "biased"}
    settings = {**read_json(tmp_path / "run.yaml"), **other}
    settings["data"]["max_length"] = 32
    settings.pop("adapter")
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    with following(COURSE):
        result = command()
    assert result.exit_code == 0, result.output
    content = torch.load(tmp_path / "biased" / "final" / "model.pt", weights_only=True)
    saved = load_file(tmp_path / "biased" / "checkpoints" / "step-000004" / "model.safetensors")
    assert torch.equal(content["model_state_dict"]["lm_head.bias"], saved["lm_head.bias"])
    assert content["step"] == 4


def train_on_ranks(ranks: Ranks, folder: Path) -> list[str]:
    """Runs whose final/ is the best policy, plain and shared; what is said where that has been damaged."""
    with contextlib.chdir(folder), following(SHORT_COURSE), pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetooth.train.ranks_of_environment", lambda: ranks)
        patch.setattr("finetooth.train.joined", lambda *_, **__: contextlib.nullcontext(Notices(None, ranks)))
        config = load_config("run.yaml")
        train(replace(config, parallel=replace(config.parallel, shard="all"), output_dir="shared"))
        train(replace(config, output_dir="plain"))
        if ranks.is_first:
            Path("plain/final").rename("final")
            damage_second_file(Path("plain/checkpoints/step-000001"))
        try:
            train(replace(config, output_dir="plain"), resume="must")
        except FinetoothError as error:
            return error.problems
    return []


def damage_second_file(folder: Path) -> None:
    """Changes a byte of the file whose hash the second of two ranks compares."""
    path = folder / sorted(read_json(folder / "MANIFEST.json")["files"])[1]
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def parameter_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*.safetensors")}


def test_on_two_ranks_final_holds_the_best_that_one_process_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    checkpoints: dict[str, Any] = {"every": 1, "final": "best"}
    write_run(tmp_path, training={"max_steps": 2}, evaluation={"every": 1}, checkpoints=checkpoints)
    with following(SHORT_COURSE):
        assert command().exit_code == 0
    alone = load_file(tmp_path / "run" / "final" / "model.safetensors")
    told = on_ranks(train_on_ranks, tmp_path, world_size=2)
    for run, final in (("plain", tmp_path / "final"), ("shared", tmp_path / "shared" / "final")):
        best, last = (tmp_path / run / "checkpoints" / f"step-00000{step}" for step in (1, 2))
        assert check_folder(final) == []
        assert len(parameter_files(final)) == {"plain": 1, "shared": 2}[run]
        assert parameter_files(final) == parameter_files(best)
        assert parameter_files(final) != parameter_files(last), "negative control: the last is another"
        ours = AutoModelForCausalLM.from_pretrained(final).state_dict()
        for name, tensor in alone.items():
            assert (ours[name] - tensor).norm() <= 1e-4 * tensor.norm(), name
    place = "plain/checkpoints/step-000001"
    damage = f"{place}: damaged: generation_config.json: its content differs from its hash"
    remedy = "restore it, or write checkpoints.final: last and go on with --resume"
    assert told == [[f"rank 1, checking {place}: {damage}; {remedy}"], ["told by another process"]]
