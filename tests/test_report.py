"""`finetooth report` writes the page of a run or of several, and what it cannot do it says in a sentence."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from tests.ranks import FORKING
from tests.reported import Page, change_json, command, copied, page_of, train_small_run
from tests.small_run import SOURCES

from finetooth import train as train_module
from finetooth.base.errors import ConfigError, FinetoothError
from finetooth.batching.schedule import Step
from finetooth.config.load import load_config
from finetooth.reporting.comparison_page import comparison_page
from finetooth.reporting.run_reading import read_run
from finetooth.train import train
from finetooth.training.progress import ProgressView
from finetooth.training.trainer import SFTTrainer


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run in `run/` of the working directory."""
    folder = tmp_path_factory.mktemp("report")
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETOOTH_CACHE", str(folder / "cache"))
        yield train_small_run(folder).relative_to(folder)


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """The run once more, with another learning rate and other figures."""
    other = copied(run, tmp_path)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("learning_rate: 0.01 ", "learning_rate: 0.02 "))

    def better(line: dict[str, Any]) -> dict[str, Any]:
        return line | ({"dev_loss": line["dev_loss"] / 2} if "dev_loss" in line else {})

    change_json(other / "metrics.jsonl", better)
    return other


def test_a_run_is_written_again_where_it_lies(run: Path):
    first = (run / "report.html").read_text()
    (run / "report.html").unlink()
    result = command("report", "run")
    assert result.exit_code == 0
    assert result.stdout == "report: run/report.html\n"
    assert (run / "report.html").read_text() == first


def test_with_json_it_tells_what_the_page_says_first(run: Path, tmp_path: Path):
    result = command("report", "run", "--out", str(tmp_path / "page.html"), "--json")
    told = json.loads(result.stdout)
    assert told["report"] == str(tmp_path / "page.html")
    [first] = told["runs"]
    assert (first["run"], first["state"]) == ("run", "finished")
    assert [finding["name"] for finding in first["findings"]][:2] == ["masks", "stop token"]
    page = Page((tmp_path / "page.html").read_text())
    for finding in first["findings"]:
        assert finding["told"] in page.text


def test_several_runs_stand_side_by_side(run: Path, other: Path):
    result = command("report", "run", str(other))
    assert result.exit_code == 0
    assert result.stdout == "comparison: comparison.html\n"
    page = Page(Path("comparison.html").read_text())
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    assert sections == ["evaluations", "curves", "settings", "findings", "answers"]
    cells = [text for place, text in page.texts if place[-1:] in (("td",), ("th",))]
    assert cells[cells.index("training.learning_rate") :][1:3] == ["0.01", "0.02"]
    assert "training.global_batch_size" not in cells
    paths = [a for tag, a in page.elements if tag == "path"]
    assert {a["class"] for a in paths} == {"line c0", "line c1"}
    assert len(paths) == 2 * 2 * 6
    last = json.loads((other / "metrics.jsonl").read_text().splitlines()[-1])
    assert f'<td class="text best">{last["dev_loss"]:.4g}</td>' in page.source


def test_runs_with_the_same_settings_say_so(run: Path, tmp_path: Path):
    same = copied(run, tmp_path)
    page = Page(comparison_page([read_run("run"), read_run(str(same))]))
    assert "None, places apart." in page.text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none"], "command line: none is no run directory; name a folder that finetooth train wrote to"),
        (["run", "run"], "command line: run is named twice; name each run once"),
        (
            [f"run{number}" for number in range(9)],
            "command line: 9 runs are more than a page can show side by side; name at most 8",
        ),
        (["run", "--out", "run"], "--out: run is a folder; name a file"),
        (["run", "--out", "none/page.html"], "--out: there is no folder none; make it, or name another file"),
    ],
)
def test_what_it_cannot_do_is_told(arguments: list[str], told: str):
    result = command("report", *arguments)
    assert (result.exit_code, result.stderr) == (2, told + "\n")


@pytest.mark.parametrize(
    "name", ["summary.json", "environment.json", "ledger.jsonl", "samples/step-000000.jsonl"]
)
def test_a_file_that_no_run_writes_is_told(run: Path, tmp_path: Path, name: str):
    broken = copied(run, tmp_path)
    (broken / name).write_text("[]\n")
    result = command("report", str(broken))
    assert result.exit_code == 1
    assert result.stderr == f"{broken / name}: not what a run writes; restore it, or name another run\n"


def test_data_that_no_run_writes_is_told(run: Path, tmp_path: Path):
    broken = copied(run, tmp_path)
    (broken / "data.json").write_text("{}")
    fact = "holds something else than a run writes (Object missing required field `tokenizer`)"
    remedy = "remove it; the report says then what it lacks"
    assert command("report", str(broken)).stderr == f"{broken / 'data.json'}: {fact}; {remedy}\n"


def test_it_loads_neither_torch_nor_transformers(run: Path):
    code = (
        "import sys; from finetooth.report import report; report(['run'])\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['tokenizers']\n"


def test_the_answers_of_eval_are_shown_the_wrong_ones_first(run: Path, tmp_path: Path):
    run = copied(run, tmp_path)
    lines = [
        {"origin": f"dev.jsonl:{n}", "prompt": f"What is {n}?", "generated": f"It is {n}.", "reference": "1"}
        | {"stopped": n != 3, "exact_match": n == 1, "extracted": str(n), "num_tokens": n, "loops": n == 2}
        | {"loss": 0.5}
        for n in (1, 2, 3)
    ]
    (run / "samples" / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    told = "3 answers: 33.3 % right, 66.7 % stop by themselves, 1 end in a loop."
    assert told in page.text
    heads = [text for place, text in page.texts if text.startswith("the policy's answer")]
    assert heads == [
        "the policy's answer · ends in a loop · 2 tokens · loss of the record's answer 0.5 · compared: 2",
        "the policy's answer · did not stop · 3 tokens · loss of the record's answer 0.5 · compared: 3",
        "the policy's answer · 1 token · loss of the record's answer 0.5 · compared: 1",
    ]


@pytest.mark.parametrize(
    ("holder", "state"),
    [
        ({"host": socket.gethostname(), "pid": 1}, "running"),
        ({"host": "another machine", "pid": 1}, "running or cut off"),
        ({"host": socket.gethostname(), "pid": os.getpid()}, "stopped"),
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, "stopped"),
        ({"host": socket.gethostname(), "pid": "1"}, "stopped"),
        ({}, "stopped"),
    ],
)
def test_a_run_that_is_gone_on_with_is_not_called_stopped(
    run: Path, tmp_path: Path, holder: dict[str, Any], state: str
):
    """Process 1 is always there; of a lock whose process is gone, nobody is in the way."""
    run = copied(run, tmp_path)
    change_json(run / "summary.json", lambda summary: summary | {"state": "stopped"})
    (run / ".lock").write_text(json.dumps(holder | {"since": "today"}))
    read = read_run(str(run))
    assert read.state == state
    assert ("seconds" in read.summary) == (state == "stopped")
    commands = page_of(run).text
    assert ("--resume auto" in commands) == (state == "stopped")


BRIEF = ("training.max_steps=3", "evaluation.every=0", "evaluation.exact_match=null", "data.dev=null")


def go_on_and_be_killed(folder: Path, name: str) -> None:
    """Goes on with a run, and is killed within the next step."""
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SFTTrainer, "update", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        patch.setenv("FINETOOTH_CACHE", str(folder / "cache"))
        config = load_config("run.yaml", [*BRIEF, f"output_dir={name}"])
        train(config, resume="must")


def test_a_run_that_went_on_and_was_killed_is_cut_off_also_where_it_had_failed(
    run: Path, monkeypatch: pytest.MonkeyPatch
):
    update = SFTTrainer.update

    def fail(self: SFTTrainer, step: Step, view: ProgressView) -> None:
        if step.number == 3:
            raise FinetoothError("step 3: it broke; mend it")
        update(self, step, view)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "update", fail)
        assert command("train", "run.yaml", *BRIEF, "output_dir=again").exit_code == 1
    with pytest.raises(ConfigError):
        train(load_config("run.yaml", [*BRIEF, "output_dir=again", "training.seed=7"]), resume="must")
    assert read_run("again").state == "failed", "a start that is refused changes nothing"
    process = FORKING.Process(target=go_on_and_be_killed, args=(Path.cwd(), "again"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert read_run("again").state == "cut off"
    text = page_of(Path("again")).text
    assert "cut off" in text
    assert "it broke" not in text


def test_a_run_that_fails_leaves_a_report_that_says_why(run: Path, monkeypatch: pytest.MonkeyPatch):
    told = "step 3: the loss is not finite; lower training.learning_rate"

    def fail(self: SFTTrainer, *arguments: Any) -> None:
        raise FinetoothError(told)

    monkeypatch.setattr(SFTTrainer, "_save", fail)
    result = command("train", "run.yaml", "output_dir=failed")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, told)
    assert result.stdout.splitlines()[-1] == "report: failed/report.html"
    page = Page(Path("failed/report.html").read_text())
    assert page.with_class("span", "failed")
    assert told in page.text
    assert "The run left no policy in final/." in page.text
    assert "finetooth train failed/config.yaml --resume auto" in page.text
    assert json.loads(Path("failed/summary.json").read_text())["problems"] == [told]


def test_a_run_that_is_stopped_leaves_a_report(run: Path, monkeypatch: pytest.MonkeyPatch):
    update = SFTTrainer.update

    def stop(self: SFTTrainer, *arguments: Any) -> None:
        update(self, *arguments)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(SFTTrainer, "update", stop)
    result = command("train", "run.yaml", "output_dir=stopped")
    assert result.exit_code == 75
    page = Page(Path("stopped/report.html").read_text())
    assert "stopped" in page.text
    assert "1 of 10 steps" in page.text


def test_a_report_that_cannot_be_written_fails_no_run(run: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: Any) -> None:
        raise FinetoothError("no/report.html: no space; free some")

    monkeypatch.setattr(train_module, "write_report", fail)
    result = command("train", "run.yaml", "output_dir=full")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == [
        "policy: full/final (step 10, the last)",
        "no report: no/report.html: no space; free some",
    ]
