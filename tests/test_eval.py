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
    written = {"origin", "prompt", "generated", "reference", "stopped", "exact_match"}
    assert set(lines[0]) == written | {"extracted", "num_tokens", "loops", "loss"}
    assert measured["mean_answer_tokens"] == sum(line["num_tokens"] for line in lines) / len(lines)
    assert measured["loop_rate"] == sum(line["loops"] for line in lines) / len(lines)
    own = {each["origin"]: each["loss"] for each in figures("run", "--per-record", "99")["records"]}
    assert {line["origin"]: line["loss"] for line in lines} == pytest.approx(own, rel=1e-6)
    assert measured["exact_match"] == sum(line["exact_match"] for line in lines) / len(lines)
    assert measured["stop_rate"] == sum(line["stopped"] for line in lines) / len(lines)


def test_the_answers_of_any_model_go_to_a_file():
    measured = figures("other", "--config", "run.yaml", "--out", "answers.jsonl", "--limit", "2")
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(lines) == measured["num_answers"] == 2
    assert all(line["num_tokens"] <= 12 for line in lines)


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


def test_the_setting_decides_what_an_answer_is():
    """The end of a text is the same for all; no text of the run holds JSON, and few answers are right."""
    assert figures("run", "exact_match=regex:$")["exact_match"] == 1
    assert figures("run")["exact_match"] < 1
    assert figures("run", "exact_match=json:answer")["exact_match"] == 0


def test_people_see_a_table():
    result = command("eval", "run")
    assert result.exit_code == 0
    shown = [line.strip("│ ").split() for line in result.stdout.splitlines() if "loss" in line]
    measured = figures("run")
    assert shown == [
        ["train_loss", "│", f"{measured['train_loss']:.4f}"],
        ["dev_loss", "│", f"{measured['dev_loss']:.4f}"],
    ]


def write_pairs(path: str, *pairs: tuple[str, str]) -> None:
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in pairs]
    Path(path).write_text("".join(line + "\n" for line in lines))


@pytest.fixture(scope="module")
def mislabelled() -> str:
    """Settings whose dev and training records are like those of the run, with one wrong label each."""
    right = [(f"What is {number}?", "four " * (number % 4) + f"is {number}.") for number in range(12)]
    write_pairs("some.jsonl", *right[:6])
    write_pairs("more.jsonl", *right[6:9], ("What is 40?", "Lima and Peru!"))
    write_pairs("held.jsonl", ("What is 50?", "Zebra, quickly"), *right[9:])
    data = {
        "train": [{"path": "some.jsonl"}, {"path": "more.jsonl", "repeat": 2}],
        "dev": [{"path": "held.jsonl"}],
        "template": "chatml",
        "max_length": 64,
    }
    settings = json.loads(Path("run.yaml").read_text()) | {"data": data, "output_dir": "other_run"}
    Path("mislabelled.yaml").write_text(json.dumps(settings))
    return "mislabelled.yaml"


@pytest.mark.parametrize(("of", "wrong"), [("dev", "held.jsonl:1"), ("train", "more.jsonl:4")])
def test_wrong_labels_have_the_highest_loss(mislabelled: str, of: str, wrong: str):
    measured = figures("run", "--config", mislabelled, "--per-record", "3", "--of", of)
    records = measured["records"]
    assert records[0]["origin"] == wrong
    assert len(records) == 3
    assert [each["loss"] for each in records] == sorted((each["loss"] for each in records), reverse=True)
    assert all(each["num_targets"] > 3 for each in records)


def test_all_training_records_are_looked_at_while_train_loss_stays_that_of_the_sample(mislabelled: str):
    sampled = ("run", "--config", mislabelled, "train_documents=1")
    few = figures(*sampled, "--per-record", "99", "--of", "train")
    assert len(few["records"]) == 10, "each once, also where its source is repeated"
    assert few["train_loss"] == pytest.approx(figures(*sampled)["train_loss"], rel=1e-6)
    every = [(each["loss"], each["num_targets"]) for each in few["records"]]
    assert any(few["train_loss"] == pytest.approx(loss, rel=1e-6) for loss, _ in every)


def test_several_sources_have_a_loss_each(mislabelled: str):
    measured = figures("run", "--config", mislabelled, "--per-record", "99", "--of", "train")
    by_source = measured["train_loss_by_source"]
    assert list(by_source) == ["some.jsonl", "more.jsonl"]
    for path, loss in by_source.items():
        own = [each for each in measured["records"] if each["origin"].startswith(path)]
        total = sum(each["loss"] * each["num_targets"] for each in own)
        assert loss == pytest.approx(total / sum(each["num_targets"] for each in own), rel=1e-6)
        assert measured["train_perplexity_by_source"][path] == math.exp(loss)
    assert by_source["more.jsonl"] > by_source["some.jsonl"] + 0.5, "the wrong label stands there"
    assert "dev_loss_by_source" not in measured


def test_a_dev_share_has_a_loss_for_each_source_it_was_taken_from(mislabelled: str):
    measured = figures("run", "--config", mislabelled, "data.dev=0.5", "--per-record", "99")
    by_source = measured["dev_loss_by_source"]
    assert set(by_source) == {each["origin"].split(":")[0] for each in measured["records"]}
    assert len(by_source) == 2


def test_people_see_records_and_sources_in_80_columns(mislabelled: str):
    arguments = ["eval", "run", "--config", mislabelled, "--per-record", "2"]
    result = CliRunner().invoke(app, arguments, prog_name="finetooth", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "train_loss, more.jsonl" in result.stdout
    shown = [line.strip("│ ").split() for line in result.stdout.splitlines() if "held.jsonl:" in line]
    records = figures("run", "--config", mislabelled, "--per-record", "2")["records"]
    assert shown == [
        [each["origin"], "│", f"{each['loss']:.4f}", "│", str(each["num_targets"])] for each in records
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["data.dev=null", "exact_match=null", "--per-record", "3"],
            "command line: --per-record: data.dev is null, so there are no dev records; add --of train\n",
        ),
        (
            ["exact_match=null", "--out", "answers.jsonl"],
            "command line: --out: evaluation.exact_match is null, so nothing is answered; "
            "add exact_match=plain\n",
        ),
        (["--out", "run"], "--out: run is a folder; name a file\n"),
        (
            ["--of", "train"],
            "command line: --of belongs to --per-record; give both, or leave it out\n",
        ),
    ],
)
def test_what_cannot_be_measured_or_kept_is_told_before_it_is_tried(arguments: list[str], sentence: str):
    result = command("eval", "run", *arguments)
    assert (result.exit_code, result.stderr) == (2, sentence)
