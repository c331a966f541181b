"""A run does not go on with other documents, whichever line of run.yaml or file of the base made them so."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.small_run import write_records, write_run

from finetooth.base import devices
from finetooth.base.errors import ConfigError
from finetooth.config.load import load_config
from finetooth.train import train


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that lacks its last steps."""
    folder = tmp_path_factory.mktemp("begun")
    with contextlib.chdir(folder):
        write_run(folder, training={"max_steps": 8})
        train(load_config("run.yaml"))
    shutil.rmtree(folder / "run" / "final")
    shutil.rmtree(sorted((folder / "run" / "checkpoints").glob("step-*"))[-1])
    return folder


def fewer_merges(folder: Path) -> None:
    path = folder / "base" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["merges"][-5:]
    path.write_text(json.dumps(tokenizer))


def more_records(folder: Path) -> None:
    write_records(folder / "train.jsonl", 24)


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "overrides", "told"),
    [
        (nothing, ["max_length=24"], ["data.max_length: 24 here, 64 in"]),
        (nothing, ["template=headers"], ["template: another than", "data.template: headers here, chatml in"]),
        (nothing, ["loss_on=all"], ["data.loss_on: all here, assistant in"]),
        (nothing, ["system=Oh."], ["data.system: Oh. here, null in"]),
        (nothing, ["dev=0.5"], ["dev documents: others than those of", "data.dev: 0.5 here, 0.25 in"]),
        (fewer_merges, [], ["tokenizer: another than that of"]),
        (more_records, [], ["training documents: others than those of"]),
    ],
)
def test_what_changed_is_named(
    begun: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    overrides: list[str],
    told: list[str],
):
    monkeypatch.chdir(shutil.copytree(begun, tmp_path / "changed", symlinks=True))
    change(Path.cwd())
    with pytest.raises(ConfigError) as caught:
        train(load_config("run.yaml", overrides), resume="must")
    named = [line for line in caught.value.problems if line.startswith(tuple(told))]
    assert len(named) == len(told), str(caught.value)
    train(load_config("run.yaml", overrides), resume="must", accept_changes=True)
    accepted = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    (changes,) = [line["changes"] for line in accepted if "changes" in line]
    assert {line.partition(":")[0] for line in told} <= changes.keys()


def test_unchanged_it_goes_on(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    monkeypatch.chdir(shutil.copytree(begun, tmp_path / "same", symlinks=True))
    assert train(load_config("run.yaml", ["cache_dir=elsewhere"]), resume="must")["state"] == "finished"


@pytest.mark.parametrize("pays", [True, False])
def test_a_run_goes_on_in_the_precision_that_was_measured_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pays: bool
):
    """What is measured near the threshold could be the other way round the next time."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, training={"max_steps": 4}, checkpoints={"every": 2})
    monkeypatch.setattr(devices, "bf16_pays_on_cpu", lambda: pays)
    whole = train(load_config("run.yaml"))
    shutil.rmtree(tmp_path / "run" / "final")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    monkeypatch.setattr(devices, "bf16_pays_on_cpu", lambda: not pays)
    again = train(load_config("run.yaml"), resume="must")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["precision"] == ("bf16" if pays else "fp32")
    assert again["train_loss"] == whole["train_loss"]
    # a precision that was asked for is what decides
    with pytest.raises(ConfigError) as caught:
        train(load_config("run.yaml", [f"precision={'fp32' if pays else 'bf16'}"]), resume="must")
    assert "precision" in str(caught.value)
