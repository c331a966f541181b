"""A name is a run, a checkpoint of one, or a model; what a command line names is targets or settings."""

from pathlib import Path

import pytest

from finetooth.arguments import split_targets
from finetooth.evaluation.targets import Target, find_target, run_of


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory `run` with a final policy and one checkpoint, and a folder `model`."""
    monkeypatch.chdir(tmp_path)
    step = tmp_path / "run" / "checkpoints" / "step-000002"
    for folder in (step, tmp_path / "run" / "final", tmp_path / "model"):
        folder.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    (step / "MANIFEST.json").write_text('{"files": {}}')
    (step.parent / "best").symlink_to(step.name)
    return tmp_path / "run"


def test_a_run_means_its_policy_and_a_folder_itself():
    run = find_target("run")
    assert run == Target("run", "run/final", Path("run"))
    assert (run.is_run, run.is_checkpoint) == (True, False)
    for name in ("someone/model", "model", "model.pt", "run/final"):
        target = find_target(name)
        assert target == Target(name, name, None)
        assert (target.is_run, target.is_checkpoint) == (False, False)


@pytest.mark.parametrize(
    "name", ["run/checkpoints/step-000002", "run/checkpoints/best", "./run/checkpoints/best/"]
)
def test_a_checkpoint_belongs_to_its_run(name: str):
    target = find_target(name)
    assert target == Target(name, name, Path("run"))
    assert (target.is_run, target.is_checkpoint) == (False, True)


def test_so_it_does_within_the_run(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run / "checkpoints")
    assert run_of("step-000002") == run
    assert run_of("best") == run
    assert run_of("..") is not None


@pytest.mark.parametrize(
    ("argument", "is_target"),
    [
        ("run", True),
        ("nothing=there", False),  # a setting that was misspelt
        ("runs/nothing=there", True),
        ("learning_rate=2", False),
        ("./learning_rate=2", True),
        ("training.learning_rate=2", False),
        ("kept=3", True),
    ],
)
def test_a_target_may_hold_an_equals_sign(argument: str, is_target: bool, tmp_path: Path):
    (tmp_path / "kept=3").mkdir()
    (tmp_path / "learning_rate=2").mkdir()
    expected = ([argument], []) if is_target else ([], [argument])
    assert split_targets([argument]) == expected
