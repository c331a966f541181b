"""`eval` measures a run's policy, or any model on a run's records, as training itself does."""

import json
import math
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_base, write_run
from typer.testing import CliRunner, Result

from finetooth.cli import app

EXAM = {"every": 0, "exact_match": "plain", "exact_match_records": 2, "max_new_tokens": 12}


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="finetooth", env={"COLUMNS": "100"})


def figures(*arguments: str) -> dict[str, Any]:
    result = command("eval", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in `run/`, and another base model in `other/`."""
    folder = tmp_path_factory.mktemp("eval")
    with chdir(folder):
        write_run(folder, evaluation=EXAM, checkpoints={"every": 0})
        write_base(folder / "other", seed=5)
        assert command("train", "run.yaml").exit_code == 0
        yield folder / "run"


def test_it_measures_what_training_measured_at_its_end(run: Path):
    summary = json.loads((run / "summary.json").read_text())
    measured = figures("run")
    for name in ("train_loss", "dev_loss", "train_perplexity", "dev_perplexity"):
        assert measured[name] == pytest.approx(summary[name], rel=1e-6)
    assert measured["dev_perplexity"] == math.exp(measured["dev_loss"])
    assert measured["target"] == "run"


def test_every_dev_record_is_answered_and_the_answers_are_kept(run: Path):
    measured = figures("run")
    lines = [json.loads(line) for line in (run / "samples" / "eval.jsonl").read_text().splitlines()]
    num_dev = sum(
        json.loads(line)["split"] == "dev" for line in (run / "ledger.jsonl").read_text().splitlines()
    )
    assert measured["num_answers"] == len(lines) == num_dev > 2
    assert set(lines[0]) == {"origin", "prompt", "generated", "reference", "stopped", "exact_match"}
    assert measured["exact_match"] == sum(line["exact_match"] for line in lines) / len(lines)
    assert measured["stop_rate"] == sum(line["stopped"] for line in lines) / len(lines)


def test_a_limit_answers_so_many_and_measures_all(run: Path):
    limited, whole = figures("run", "--limit", "1"), figures("run")
    assert limited["num_answers"] == 1
    assert limited["dev_loss"] == whole["dev_loss"]


def test_the_layout_changes_no_figure():
    usual = figures("run")
    for layout in ("packing=false", "row_tokens=64", "rows_at_once=3"):
        other = figures("run", layout)
        assert other["dev_loss"] == pytest.approx(usual["dev_loss"], rel=1e-6)
        assert other["train_loss"] == pytest.approx(usual["train_loss"], rel=1e-6)


def test_another_model_is_measured_on_the_same_records(run: Path):
    trained, fresh = figures("run"), figures("other", "--config", "run.yaml")
    assert fresh["target"] == "other"
    assert fresh["dev_loss"] > trained["dev_loss"] + 0.1
    assert not (Path("other") / "samples").exists()


def test_the_base_is_where_training_began(run: Path):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert figures("base", "--config", "run.yaml")["dev_loss"] == pytest.approx(
        lines[0]["dev_loss"], rel=1e-6
    )


def test_without_an_exam_nothing_is_answered():
    measured = figures("run", "exact_match=null")
    assert not {"exact_match", "stop_rate", "num_answers"} & set(measured)


def test_people_see_a_table():
    result = command("eval", "run")
    assert result.exit_code == 0
    shown = [line.strip("│ ").split() for line in result.stdout.splitlines() if "loss" in line]
    measured = figures("run")
    assert shown == [
        ["train_loss", "│", f"{measured['train_loss']:.4f}"],
        ["dev_loss", "│", f"{measured['dev_loss']:.4f}"],
    ]
