"""`plan --measure` tells what the run then takes and leaves nothing behind; what does not fit is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from tests.small_run import SOURCES, run_process, start_process, write_run
from typer.testing import CliRunner, Result

from finetooth import plan as plan_module
from finetooth import trial as trial_module
from finetooth.base.errors import DeviceMemoryError
from finetooth.base.machine import Machine
from finetooth.cli import app
from finetooth.training import trial_process
from finetooth.training.trainer import SFTTrainer

MEMORY_WITHIN = 0.1
SETTINGS = ("evaluation.exact_match=plain", "model.path=base")


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, and what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(before: dict[str, bytes], folder: Path) -> set[str]:
    """Files that are new or others than before."""
    return {name for name, content in files_of(folder).items() if before.get(name) != content}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """What the plan says, as its command line prints it; nothing stays of it."""
    before = files_of(folder)
    code, stdout, stderr = run_process("plan", "run.yaml", "--measure", "--json", *SETTINGS, folder=folder)
    assert code == 0, stderr
    assert leftovers(before, folder) == set()
    assert not (folder / "run").exists()
    return json.loads(stdout)


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "run.yaml", *arguments], prog_name="finetooth")


def test_a_plan_that_is_stopped_leaves_nothing_behind_either(tmp_path: Path):
    write_run(tmp_path)
    before = files_of(tmp_path)
    process = start_process("plan", "run.yaml", "--measure", folder=tmp_path)
    while process.poll() is None and not any(tmp_path.glob(".finetooth-plan.*/run.yaml")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    said = "run: stopped by SIGTERM before the first step; start it with the same command\n"
    assert (process.returncode, stderr) == (75, said)
    assert leftovers(before, tmp_path) == set()
    assert not any(tmp_path.glob(".finetooth-plan*"))


def test_what_a_killed_plan_left_goes_with_a_later_one(here: Path, monkeypatch: pytest.MonkeyPatch):
    left = here / ".finetooth-plan.partial-0"
    (left / "run").mkdir(parents=True)
    os.utime(left, (0, 0))

    def ended(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "trial" in command:
            folder = Path(command[4]).parent
            assert list(here.glob(".finetooth-plan*")) == [folder]
            [held] = options["pass_fds"]
            assert os.path.samestat(os.fstat(held), folder.stat()), "who measures holds it"
        return subprocess.CompletedProcess(command, 3, "", "")

    monkeypatch.setattr(trial_process.subprocess, "run", ended)
    said = "--measure: exit code 3: it said nothing; see what finetooth train says\n"
    assert run("--measure").stderr == said
    assert not any(here.glob(".finetooth-plan*"))


def test_what_is_left_behind_would_be_noticed(tmp_path: Path):
    (tmp_path / "kept").write_text("as it was")
    before = files_of(tmp_path)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "new").write_text("")
    (tmp_path / "kept").write_text("changed")
    assert leftovers(before, tmp_path) == {".hidden/new", "kept"}


def test_parts_of_the_time_add_up_and_say_how_much_was_measured(told: dict[str, Any]):
    parts = told["time"]["parts"]
    names = {"start", "losses", "answers", "steps", "checkpoints", "policy", "report", "end"}
    assert set(parts) == names
    assert told["time"]["basis"] == "measured"
    assert told["time"]["seconds"] == pytest.approx(sum(part["seconds"] for part in parts.values()), abs=1e-2)
    assert all(part["seconds"] >= 0 for part in parts.values())
    measured = {name: (part["measured"], part["in_all"], part["times"]) for name, part in parts.items()}
    assert measured["steps"] == (10, 10, 1)
    assert measured["losses"] == (20, 20, 4), "17 and 3 documents, before the first step and behind 4, 8, 10"
    assert measured["answers"] == (12, 12, 4)
    assert measured["checkpoints"][2] == 5, "behind 2, 4, 6, 8, 10"
    assert parts["checkpoints"]["measured"] == parts["checkpoints"]["in_all"] > 0


def test_memory_is_that_of_the_run(folder: Path, told: dict[str, Any]):
    code, stdout, stderr = run_process("train", "run.yaml", "--json", *SETTINGS, folder=folder)
    assert code == 0, stderr
    taken = json.loads(stdout)["peak_memory_mb"] * 1e6
    assert told["memory"]["measured"] == pytest.approx(taken, rel=MEMORY_WITHIN)
    assert told["memory"]["fits"]


def test_it_says_it_in_lines(here: Path, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    parts = {name: trial_process.Part(**fields) for name, fields in told["time"]["parts"].items()}
    parts["steps"] = trial_process.Part(7300.0, "steps", 24, 900)
    parts["checkpoints"] = trial_process.Part(5.0, "bytes", 268_000_000, 1_200_000_000, 3)
    parts["answers"] = trial_process.Part(8.0, "tokens of each answer", 64, 256, 4)
    for name, seconds in {"start": 6.0, "losses": 2.0, "policy": 1.0, "report": 0.5, "end": 0.4}.items():
        parts[name] = trial_process.Part(seconds, parts[name].counted, 1, 1)
    trial = trial_process.Trial("cpu, 1 threads, fp32", parts, 612_000_000, "elementwise", 95.0)
    monkeypatch.setattr(plan_module, "run_trial", lambda _: trial)
    assert run("--measure").stdout.splitlines()[-4:] == [
        "peak          612.0 MB, measured on cpu, 1 threads, fp32, recompute: elementwise",
        "time          about 2 h 2 min: start 6 s, steps 2 h 1 min, evaluations 10 s, checkpoints 5 s, "
        "end 2 s",
        "measured      in 1 min 35 s: answers: 64 of 256 tokens of each answer; steps: 24 of 900; "
        "checkpoints: 268.0 MB of 1.2 GB",
        "answers       2 s per evaluation as the base writes them; a trained policy may be quicker",
    ]


def test_other_machines_and_ranks_are_not_measured(here: Path):
    fact = "--measure: measures one process of this machine; leave out "
    result = run("--measure", "--world", "2", "--gpu-memory", "80GB")
    assert result.exit_code == 2
    assert result.stderr == f"{fact}--world or --measure\n{fact}--gpu-memory or --measure\n"


def test_several_processes_do_not_measure(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("--measure")
    said = "environment: several processes measure; start plan as one process\n"
    assert (result.exit_code, result.stderr) == (2, said)


def test_parameters_that_memory_does_not_hold_are_not_loaded(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plan_module, "this_machine", lambda: Machine(16_000_000, 40_000))
    result = run("--measure")
    fact = "memory: the parameters alone take 0.1 MB, and 0.0 MB are free"
    assert (result.exit_code, result.stderr) == (4, f"{fact}; {plan_module._FITTING}\n")


def test_a_mistake_that_training_meets_is_told_as_it_tells_it(here: Path):
    result = run("--measure", "warmup_steps=10")
    fact = "training.warmup_steps: 10 steps of warm-up in a run of 10 steps"
    assert (result.exit_code, result.stderr) == (2, f"{fact}; write fewer, or a share such as 0.03\n")


@pytest.mark.parametrize(
    ("code", "stderr", "exit_code", "said"),
    [
        (
            -9,
            "",
            4,
            "memory: the system killed the process that measured, as it does where memory runs out; "
            "lower training.row_tokens or training.rows_at_once, or free memory\n",
        ),
        (3, "a\nb\n", 1, "--measure: exit code 3: b; see what finetooth train says\n"),
        (3, "", 1, "--measure: exit code 3: it said nothing; see what finetooth train says\n"),
    ],
)
def test_a_trial_that_ends_early_is_told(
    here: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, exit_code: int, said: str
):
    def ended(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(trial_process.subprocess, "run", ended)
    result = run("--measure")
    assert (result.exit_code, result.stderr) == (exit_code, said)


def test_a_folder_that_may_not_be_written_is_told(here: Path):
    result = run("--measure", "output_dir=/proc/none/run")
    said = (
        "/proc/run: cannot be written (No such file or directory); free space there or choose another place\n"
    )
    assert (result.exit_code, result.stderr) == (1, said)


def test_a_checkpoint_that_memory_does_not_hold_is_told(monkeypatch: pytest.MonkeyPatch):
    def run_out(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(trial_module, "time_saving", run_out)
    with pytest.raises(DeviceMemoryError) as caught:
        trial_module._time_saving(cast(SFTTrainer, None), Path("checkpoint"))
    fact = "memory does not hold a step beside the copy of the state that a checkpoint is written from"
    said = f"checkpoints.background: {fact}; write false, or lower training.row_tokens"
    assert caught.value.problems == [said]


SCARCE = """
import sys
from pathlib import Path
from finetooth import trial
from finetooth.base.errors import DeviceMemoryError
from finetooth.config.load import load_config
trial.host_memory = lambda: (1 << 34, int(sys.argv[1]))
trial._measure = lambda *_: sys.exit("it fits")
try:
    trial.trial(load_config("run.yaml", ["output_dir=scarce", *sys.argv[2:]]))
except DeviceMemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system sets no bounds")
@pytest.mark.parametrize(("free", "says"), [("20_000_000", True), ("4_000_000_000", False)])
def test_memory_that_is_not_free_is_refused_and_what_fits_is_named(tmp_path: Path, free: str, says: bool):
    write_run(tmp_path, num_records=400, training={"global_batch_size": 256, "row_tokens": 8192})
    command = [sys.executable, "-c", SCARCE, free, "max_steps=2", "dev=null"]
    environment = {
        "PYTHONPATH": str(SOURCES),
        "FINETOOTH_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ("does not fit; training.row_tokens: " in done.stdout) is says, done.stderr
    assert ("it fits" in done.stderr) is not says
