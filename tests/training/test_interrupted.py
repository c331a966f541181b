"""Runs of two processes end in a sentence, and leave no process, whatever becomes of one of them."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import start_process, write_run

LONG = {"max_steps": 5000, "global_batch_size": 2}
TIMEOUT = 5
WHILE = "preparing data"


class Run:
    """Two processes that train in a folder, and have come to a point."""

    def __init__(self, folder: Path, is_there: Callable[[Path], bool], **options: Any):
        self.folder = folder
        write_run(
            folder,
            **{
                "training": LONG,
                "evaluation": {"every": 0},
                "checkpoints": {"every": 0},
                "parallel": {"timeout": TIMEOUT},
                **options,
            },
        )
        variables = {"FINETOOTH_CACHE": str(folder / "cache")}
        self.launcher = start_process("train", "run.yaml", "--nproc", "2", folder=folder, **variables)
        give_up = time.monotonic() + 100
        while not is_there(folder):
            assert self.launcher.poll() is None, self.launcher.communicate()[1]
            assert time.monotonic() < give_up, "the processes do nothing"
            time.sleep(0.01)
        self.ranks = children(self.launcher.pid)

    def end(self) -> tuple[int, str]:
        """The launcher's exit code and what was said; no process is left."""
        _, stderr = self.launcher.communicate(timeout=60)
        give_up = time.monotonic() + 30
        while any(is_running(rank) for rank in self.ranks):
            assert time.monotonic() < give_up, "a process is left behind"
            time.sleep(0.01)
        return self.launcher.returncode, stderr

    @property
    def summary(self) -> dict[str, object]:
        return json.loads((self.folder / "run" / "summary.json").read_text())


def children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return sorted(int(number) for number in listed.stdout.split())


def is_running(process: int) -> bool:
    """Whether a process is there, and not only waits to be noticed by its parent."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def trains(folder: Path) -> bool:
    """Whether the third update is done."""
    path = folder / "run" / "metrics.jsonl"
    return path.exists() and '"step": 3,' in path.read_text()


def tokenises(folder: Path) -> bool:
    """Whether prepared data is being written, which thousands of records make last."""
    return any((folder / "cache").glob(".*partial*"))


@contextlib.contextmanager
def running(folder: Path, is_there: Callable[[Path], bool], **options: Any) -> Iterator[Run]:
    run = Run(folder, is_there, **options)
    yield run
    for process in (run.launcher.pid, *run.ranks):
        if is_running(process):
            os.kill(process, signal.SIGKILL)
    run.launcher.communicate()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """In the midst of the training."""
    with running(tmp_path, trains) as run:
        yield run


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(run: Run, number: signal.Signals, exit_code: int):
    os.kill(run.ranks[1], number)
    code, stderr = run.end()
    last = run.summary["num_steps"]
    said = f"run: stopped after step {last} of 5000, saved; continue with --resume\n"
    assert (code, stderr, run.summary["state"]) == (exit_code, said, "stopped")
    assert [path.name for path in (run.folder / "run" / "checkpoints").glob("step-*")] == [f"step-{last:06d}"]


@pytest.mark.slow
def test_a_signal_to_one_rank_in_an_evaluation_stops_all_after_the_step_before_it(tmp_path: Path):
    exam = {"exact_match": "plain", "exact_match_records": 200, "max_new_tokens": 40}
    with running(tmp_path, trains, num_records=800, evaluation={"every": 3, **exam}) as run:
        os.kill(run.ranks[1], signal.SIGTERM)
        code, stderr = run.end()
        said = "run: stopped after step 3 of 5000, saved; continue with --resume\n"
        assert (code, stderr, run.summary["state"]) == (75, said, "stopped")
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "dev_loss" in line] == [0], "the evaluation was left"
        assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000003"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_while_tokenising_stops_all(tmp_path: Path, rank: int):
    """Where rank 0 is not the one, it learns of it when the data is there, or is ended before."""
    with running(tmp_path, tokenises, num_records=20_000) as run:
        os.kill(run.ranks[rank], signal.SIGTERM)
        code, stderr = run.end()
        said = "run: stopped by SIGTERM before the first step; start it with the same command\n"
        sentences = {
            0: (said,),
            1: (f"rank 1, {WHILE}: {said}", "run: stopped; continue with --resume auto\n"),
        }
        assert code == 75
        assert stderr in sentences[rank]
        assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all(run: Run):
    run.launcher.send_signal(signal.SIGUSR1)
    code, stderr = run.end()
    assert (code, stderr.count("\n"), run.summary["state"]) == (75, 1, "stopped")


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_with_step_and_phase(run: Run):
    os.kill(run.ranks[1], signal.SIGKILL)
    code, stderr = run.end()
    first, second = stderr.splitlines()
    assert code == 128 + signal.SIGKILL
    assert first == "rank 1: ended by SIGKILL; where nobody sent it, the machine's memory ran out"
    assert second.startswith("rank 0, step ")
    assert second.endswith(": rank 1 does not answer; look at its last lines, and go on with --resume")
    assert run.summary["state"] == "failed"


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_in_time(run: Run):
    started = time.monotonic()
    os.kill(run.ranks[1], signal.SIGSTOP)
    code, stderr = run.end()
    assert time.monotonic() < started + TIMEOUT + 30
    assert (code, stderr.count("\n")) == (1, 1)
    assert stderr.startswith("rank 0, step ")
    assert "rank 1 does not answer" in stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux tells processes of their parent's end")
def test_a_launcher_that_is_killed_leaves_no_process(run: Run):
    run.launcher.kill()
    code, _ = run.end()
    assert code == -signal.SIGKILL
    assert run.summary["state"] == "stopped"
