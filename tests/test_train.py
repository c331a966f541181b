"""`train` leaves a complete run directory, stops and resumes to the bit, and needs no network."""

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import run_process, start_process, write_run
from typer.testing import CliRunner, Result

from finetooth.arguments import spell_out_resume
from finetooth.base.files import check_folder
from finetooth.cli import app
from finetooth.config.load import load_config
from finetooth.train import train

EXAM = {"exact_match": "plain", "exact_match_records": 3, "max_new_tokens": 6}
CHANGING = ("seconds", "time", "peak_memory_mb")


def command(*arguments: str) -> Result:
    spelled = spell_out_resume(["train", "run.yaml", *arguments])
    return CliRunner().invoke(app, spelled, prog_name="finetooth", env={"COLUMNS": "200"})


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CHANGING} for line in lines]


def policy_bytes(run: Path) -> bytes:
    return (run / "final" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run in `run/`, made by the command line."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        write_run(folder, evaluation={"every": 3, **EXAM})
        result = command("--json")
        assert result.exit_code == 0, result.output
        (folder / "printed.json").write_text(result.stdout)
        yield folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_run_directory_is_complete(finished: Path):
    run = finished / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        *("checkpoints", "config.yaml", "data.json", "environment.json", "final", "ledger.jsonl"),
        *("metrics.jsonl", "report.html", "samples", "schedule.json", "summary.json"),
    ]
    for checkpoint in [*(run / "checkpoints").glob("step-*"), run / "final"]:
        assert check_folder(checkpoint) == []
    evaluated = [line["step"] for line in metrics(run) if "dev_loss" in line]
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        f"step-{step:06d}.jsonl" for step in evaluated
    ]
    assert len((run / "ledger.jsonl").read_text().splitlines()) == 20


def test_the_summary_says_what_was_done(finished: Path):
    run = finished / "run"
    summary, schedule = read_json(run / "summary.json"), read_json(run / "schedule.json")
    assert summary == read_json(finished / "printed.json")
    assert set(summary) == {
        *("state", "output_dir", "num_steps", "num_documents", "num_tokens", "num_targets", "seconds"),
        *("loss", "train_loss", "train_perplexity", "dev_loss", "dev_perplexity", "exact_match", "stop_rate"),
        *("best_step", "best_by", "final_step", "first_train_loss", "peak_memory_mb", "loop_rate"),
    }
    updates = [line for line in metrics(run) if "loss" in line]
    evaluations = [line for line in metrics(run) if "dev_loss" in line]
    assert (summary["state"], summary["output_dir"]) == ("finished", "run")
    assert summary["num_steps"] == schedule["num_steps"] == len(updates)
    assert summary["num_tokens"] == sum(line["num_tokens"] for line in updates) == 2 * schedule["num_tokens"]
    assert summary["num_targets"] == sum(line["num_targets"] for line in updates)
    assert summary["loss"] == updates[-1]["loss"]
    assert summary["dev_loss"] == evaluations[-1]["dev_loss"]
    best = min((line["dev_loss"], line["step"]) for line in evaluations if line["step"])
    assert summary["best_step"] == best[1]
    assert os.readlink(run / "checkpoints" / "best") == f"step-{best[1]:06d}"


def test_the_settings_it_wrote_make_the_same_run(finished: Path):
    again = load_config(finished / "run" / "config.yaml", ["output_dir=again"])
    train(again)
    assert metrics(finished / "again") == metrics(finished / "run")
    assert policy_bytes(finished / "again") == policy_bytes(finished / "run")


def test_another_seed_makes_another_run(finished: Path):
    """Negative control of the comparison above."""
    train(load_config(finished / "run.yaml", ["output_dir=other", "seed=1"]))
    assert metrics(finished / "other") != metrics(finished / "run")
    assert policy_bytes(finished / "other") != policy_bytes(finished / "run")


def test_a_finished_run_says_so_and_stays_as_it_is(finished: Path):
    before, lines = policy_bytes(finished / "run"), metrics(finished / "run")
    result = command("--resume", "auto")
    assert result.exit_code == 0
    assert "this run was finished already" in result.stdout
    assert (policy_bytes(finished / "run"), metrics(finished / "run")) == (before, lines)


def test_a_resume_that_is_refused_changes_nothing(finished: Path):
    run = finished / "run"
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    last = max(path.name for path in (run / "checkpoints").glob("step-*"))
    result = command("--resume=must", "learning_rate=0.5")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"training.learning_rate: 0.5 here, 0.01 in run/checkpoints/{last}; undo the change",
        "output_dir: a run with other settings cannot go on here; "
        "undo the change, name another folder, or accept the change with --accept-changes",
    ]
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before


def test_a_finished_run_is_made_longer_and_says_what_changed(folder: Path):
    write_run(folder)
    assert command("max_steps=3").exit_code == 0
    refused = command("--resume", "max_steps=5")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("number of steps: 5 here, 3 in run/checkpoints/step-000003; undo")
    result = command("--resume", "--accept-changes", "max_steps=5")
    assert result.exit_code == 0
    assert "from step 4 on: number of steps 5 instead of 3; the learning rate now follows" in result.stdout
    summary = read_json(folder / "run" / "summary.json")
    assert (summary["state"], summary["num_steps"]) == ("finished", 5)
    assert summary["changes"] == [{"step": 4, "changes": {"number of steps": {"before": 3, "now": 5}}}]
    assert [line["step"] for line in metrics(folder / "run") if "loss" in line] == [1, 2, 3, 4, 5]


def test_where_all_checkpoints_are_damaged_auto_sets_them_aside_and_starts_anew(folder: Path):
    write_run(folder)
    assert command("max_steps=3").exit_code == 0
    once = metrics(folder / "run")
    places = sorted((folder / "run" / "checkpoints").glob("step-*"))
    for place in places:
        (place / "state.json").unlink()
    assert command("--resume", "max_steps=3").exit_code == 1
    result = command("--resume", "auto", "max_steps=3")
    assert result.exit_code == 0
    assert result.stdout.count("damaged: state.json: missing; the run starts anew") == len(places)
    assert metrics(folder / "run") == once
    kept = sorted(path.name for path in (folder / "run" / "checkpoints").glob("aside-*"))
    assert kept == [f"aside-{place.name}" for place in places]


def test_accepting_changes_belongs_to_a_resume(folder: Path):
    write_run(folder)
    result = command("--accept-changes")
    assert (result.exit_code, result.stderr) == (
        2,
        "command line: --accept-changes belongs to --resume; give both, or leave it out\n",
    )


def test_without_dev_records_there_are_no_dev_figures(folder: Path):
    write_run(folder, data={"dev": None})
    assert command("max_steps=2").exit_code == 0
    summary = read_json(folder / "run" / "summary.json")
    assert not {"dev_loss", "dev_perplexity", "exact_match", "stop_rate"} & set(summary)
    assert summary["best_step"] is None


def test_overfitting_a_few_records_makes_the_loss_collapse(folder: Path):
    write_run(folder, checkpoints={"every": 0}, evaluation={"every": 0})
    result = command("--overfit", "8", "max_steps=60", "--json")
    summary = json.loads(result.stdout)
    assert (summary["num_documents"], summary["state"]) == (8, "finished")
    start = metrics(folder / "run")[0]["train_loss"]
    assert summary["train_loss"] < 0.1 * start
    assert "dev_loss" not in summary
    assert "the loss of these documents fell from" in result.stderr
    assert "no collapse" not in result.stderr


def test_a_sanity_run_that_learns_nothing_says_so(folder: Path):
    write_run(folder, checkpoints={"every": 0}, evaluation={"every": 0})
    result = command("--overfit", "8", "max_steps=2", "learning_rate=1e-9", "min_learning_rate=0")
    assert "which is no collapse: raise learning_rate or max_steps, or look at the targets" in result.stdout


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(folder: Path, precision: str):
    write_run(folder, evaluation={"every": 0}, checkpoints={"every": 0})
    assert command(f"precision={precision}").exit_code == 0
    lines = metrics(folder / "run")
    assert lines[-1]["train_loss"] < 0.8 * lines[0]["train_loss"]
    assert precision in read_json(folder / "run" / "environment.json")["device"]


def test_a_gradient_that_is_no_number_ends_the_run(folder: Path):
    """Parameters of 1e30 overflow when the norms square them."""
    write_run(folder, num_records=2, data={"dev": None}, evaluation={"every": 0})
    result = command("learning_rate=1e30", "max_steps=9")
    assert result.stderr == (
        "step 2: the gradient's norm is nan; the parameters were not touched; "
        "look at these documents, or lower training.learning_rate\n"
        "documents of this step: train.jsonl:1, train.jsonl:2; each is finite alone, "
        "so the learning rate or the model is to blame\n"
    )
    assert result.exit_code == 1
    assert metrics(folder / "run")[-1]["step"] == 1
    summary = read_json(folder / "run" / "summary.json")
    assert set(summary) == {"state", "output_dir", "seconds", "problems"}
    assert summary["state"] == "failed"
    assert "\n".join(summary["problems"]) + "\n" == result.stderr
    assert not (folder / "run" / "final").exists()


def test_a_policy_that_the_last_update_broke_is_no_result(folder: Path):
    """Parameters of 1e18 pass as finite; what is computed with them does not."""
    write_run(folder)
    result = command("learning_rate=1e18", "max_steps=1", "--json")
    sentence = (
        "evaluation: the loss is nan; the last updates broke the policy; "
        "train again with a lower training.learning_rate"
    )
    assert (result.exit_code, json.loads(result.stdout)) == (1, {"error": [sentence], "exit_code": 1})
    assert read_json(folder / "run" / "summary.json")["state"] == "failed"
    assert not (folder / "run" / "final").exists()
    assert "NaN" not in (folder / "run" / "metrics.jsonl").read_text()


def test_an_enormous_loss_is_still_json(folder: Path):
    write_run(folder)
    result = command("learning_rate=1e3", "max_steps=1", "--json")
    assert json.loads(result.stdout)["dev_perplexity"] == math.exp(700)
    assert "Infinity" not in (folder / "run" / "metrics.jsonl").read_text()


LONG = {"max_steps": 300, "global_batch_size": 2}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the interrupted ones below must equal."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with contextlib.chdir(folder):
        write_run(folder, training=LONG, checkpoints={"every": 0}, evaluation={"every": 50})
        train(load_config("run.yaml"))
    return folder / "run"


def start_and_wait_for_step(folder: Path, step: int) -> subprocess.Popen[str]:
    process = start_process("train", "run.yaml", folder=folder)
    path = folder / "run" / "metrics.jsonl"
    give_up = time.monotonic() + 100
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < give_up, "the process trains nothing"
        time.sleep(0.005)
    return process


@pytest.mark.slow
def test_a_run_that_was_asked_to_stop_goes_on_to_the_same_bits(folder: Path, uninterrupted: Path):
    write_run(folder, training=LONG, checkpoints={"every": 0}, evaluation={"every": 50})
    process = start_and_wait_for_step(folder, 5)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    summary = read_json(folder / "run" / "summary.json")
    assert summary["state"] == "stopped"
    last = summary["num_steps"]
    assert stderr == f"run: stopped after step {last} of 300, saved; continue with --resume\n"
    assert 5 <= last < 300
    assert not (folder / "run" / "final").exists()
    result = command("--resume")
    assert result.exit_code == 0
    assert f" documents; continues after step {last}\n" in result.stdout
    assert read_json(folder / "run" / "summary.json")["state"] == "finished"
    assert metrics(folder / "run") == metrics(uninterrupted)
    assert policy_bytes(folder / "run") == policy_bytes(uninterrupted)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bits(folder: Path, uninterrupted: Path):
    write_run(folder, training=LONG, checkpoints={"every": 3}, evaluation={"every": 50})
    process = start_and_wait_for_step(folder, 7)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert command("--resume").exit_code == 0
    assert metrics(folder / "run") == metrics(uninterrupted)
    assert policy_bytes(folder / "run") == policy_bytes(uninterrupted)


def test_resume_auto_starts_a_run_where_there_is_none(folder: Path):
    write_run(folder)
    (folder / "run").mkdir()
    assert command("--resume", "auto").exit_code == 0
    assert read_json(folder / "run" / "summary.json")["state"] == "finished"


def test_resume_auto_starts_anew_what_was_killed_before_its_first_checkpoint(folder: Path):
    write_run(folder)
    assert command().exit_code == 0
    once = metrics(folder / "run")
    for checkpoint in (folder / "run" / "checkpoints").glob("step-*"):
        checkpoint.rename(folder / checkpoint.name)
    assert command("--resume", "auto").exit_code == 0
    assert metrics(folder / "run") == once


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(folder: Path):
    write_run(folder)
    assert command().exit_code == 0
    whole, lines = policy_bytes(folder / "run"), metrics(folder / "run")
    before, newest = sorted((folder / "run" / "checkpoints").glob("step-*"))[-2:]
    (newest / "optimizer.safetensors").unlink()
    result = command("--resume")
    assert result.exit_code == 0
    shown = newest.relative_to(folder)
    fact = f"{shown}: damaged: optimizer.safetensors: missing; the checkpoint before it is used\n"
    assert result.stdout.startswith(fact)
    assert f"continues after step {int(before.name.removeprefix('step-'))}" in result.stdout
    assert (policy_bytes(folder / "run"), metrics(folder / "run")) == (whole, lines)


NO_SOCKETS = """
import os, socket
def refuse(*arguments, **options):
    with open(os.environ["ATTEMPTS"], "a") as file:
        print(*arguments, file=file)
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = refuse
"""


def run_without_network(folder: Path, *arguments: str) -> tuple[int, str, str, str]:
    """Exit code, standard output, standard error, and every connection that was tried."""
    (folder / "blocked").mkdir()
    (folder / "blocked" / "sitecustomize.py").write_text(NO_SOCKETS)
    attempts = folder / "attempts.txt"
    attempts.touch()
    told = run_process(
        *arguments,
        folder=folder,
        PYTHONPATH=str(folder / "blocked"),
        ATTEMPTS=str(attempts),
        HF_HUB_OFFLINE="0",
        HF_HOME=str(folder / "hub"),
    )
    return *told, attempts.read_text()


def test_local_inputs_need_no_network(folder: Path):
    write_run(folder, evaluation=EXAM)
    exit_code, _, *silence = run_without_network(folder, "train", "run.yaml", "max_steps=2")
    assert (exit_code, *silence) == (0, "", "")
    assert math.isfinite(read_json(folder / "run" / "summary.json")["loss"])


def test_a_connection_would_be_noticed(folder: Path):
    """Negative control: a model that is named as on the hub is looked for there."""
    write_run(folder)
    exit_code, _, stderr, attempts = run_without_network(
        folder, "train", "run.yaml", "model.path=someone/model"
    )
    assert (exit_code, stderr) == (
        2,
        "model.path: someone/model: not in the local cache, and the hub is unreachable; check the network\n",
    )
    assert attempts
