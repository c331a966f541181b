"""Several processes train what one trains: same losses, evaluations and policy; failures are told once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import run_process, write_run
from transformers import AutoModelForCausalLM

CHANGING = ("seconds", "time", "peak_memory_mb")
EXAM = {"every": 3, "exact_match": "plain", "exact_match_records": 3, "max_new_tokens": 4}


def lines(folder: Path, output: str) -> list[dict[str, Any]]:
    text = (folder / output / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one process trained, in `alone/`."""
    folder = tmp_path_factory.mktemp("several")
    write_run(folder, num_records=10, evaluation=EXAM)
    code, _, stderr = run_process("train", "run.yaml", "output_dir=alone", folder=folder)
    assert code == 0, stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_every_world_size_trains_the_same(folder: Path, num_processes: int):
    """With 4 processes and 4 short documents per step in one row each, some ranks have no document at all."""
    output = f"world{num_processes}"
    command = ("train", "run.yaml", f"output_dir={output}", "--nproc", str(num_processes), "--json")
    code, stdout, stderr = run_process(*command, folder=folder)
    assert code == 0, stderr
    assert json.loads(stdout)["state"] == "finished"
    assert_same_run(folder, output)
    samples = [(folder / name / "samples" / "step-000003.jsonl").read_text() for name in (output, "alone")]
    assert sorted(samples[0].splitlines()) == sorted(samples[1].splitlines())


def test_bad_data_is_told_once(folder: Path):
    (folder / "bad.jsonl").write_text('{"prompt": "a", "response": ""}\n')
    code, stdout, stderr = run_process(
        "train", "run.yaml", "data.train=bad.jsonl", "output_dir=bad", "--nproc", "2", folder=folder
    )
    assert (code, stdout) == (3, "")
    assert stderr == "bad.jsonl:1: empty answer; write an answer or remove the record\n"
    assert not (folder / "bad").exists()


def test_a_mistake_in_the_settings_is_told_once(folder: Path):
    code, _, stderr = run_process("train", "run.yaml", "seed=-1", "--nproc", "2", folder=folder)
    assert code == 2
    assert stderr.count("\n") == 1
    assert stderr.startswith("command line: training.seed: found the number -1;")


@pytest.mark.slow
def test_shared_parameters_train_the_same_and_each_layout_resumes_the_other(folder: Path):
    """The last checkpoint of a finished run is taken away, and another layout goes on from the one before."""
    shared = ("--nproc", "2", "parallel.shard=all")
    code, _, stderr = run_process("train", "run.yaml", "output_dir=shared", *shared, folder=folder)
    assert code == 0, stderr
    assert_same_run(folder, "shared")
    for first, second in (("shared", ()), ("alone", shared)):
        output = f"after-{first}"
        shutil.copytree(folder / first, folder / output, symlinks=True)
        newest = max((folder / output / "checkpoints").glob("step-*"))
        shutil.rmtree(newest)
        command = ("train", "run.yaml", f"output_dir={output}", *second, "--resume")
        code, stdout, stderr = run_process(*command, folder=folder)
        assert code == 0, stderr
        assert "continues after step" in stdout
        assert_same_run(folder, output)


def assert_same_run(folder: Path, output: str) -> None:
    """Holds every line of metrics, and the policy, against those of the run of one process."""
    here, alone = lines(folder, output), lines(folder, "alone")
    assert [line["step"] for line in here] == [line["step"] for line in alone]
    for line, expected in zip(here, alone, strict=True):
        measured = {name: value for name, value in expected.items() if name not in CHANGING}
        assert {name: line[name] for name in measured} == pytest.approx(measured, rel=1e-5)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder / run / "final") for run in (output, "alone"))
    for (name, tensor), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert (tensor - expected).norm() <= 1e-4 * expected.norm(), name
