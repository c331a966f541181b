"""The script for Slurm does what its page says, with stand-ins for the programs of a cluster."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.shown_commands import BLOCK, PAGES, SCRIPT
from tests.sound_commands import require_torchrun

from finetooth.training.run_directory import write_json

[JOB] = [block for text in PAGES.values() for language, block in BLOCK.findall(text) if language == SCRIPT]
FIRST_WAIT = 'wait "$training"   # ends early'
SECOND_WAIT = 'wait "$training"   # until everything is saved'
# torchrun saves when it is told to stop, which takes until `saved` is there, and else ends with `finished`.
STAND_INS = {
    "scontrol": 'echo "$@" >> scontrol.txt; printf "%s\\n" first-machine second-machine',
    "srun": 'exec "$@"',
    "torchrun": """printf "%s\\n" "$@" > torchrun.txt
end() { until [ -e "$1" ]; do sleep 0.05; done; cp "$1.json" runs/first/summary.json; exit "$2"; }
trap "touch told; end saved 1" TERM
touch started
end finished 0""",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are stand-ins, which write down what they were told."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for name, lines in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
    for name, state in {"saved": "stopped", "finished": "finished"}.items():
        write_json(tmp_path / f"{name}.json", {"state": state})
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_ID": "17", "JOB_NODELIST": "machines[1-2]", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path


@contextmanager
def started(script: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The script, once it waits for torchrun."""
    assert script.count(FIRST_WAIT) == 1
    (folder / "job.sh").write_text(script.replace(FIRST_WAIT, f"touch waits\n{FIRST_WAIT}"))
    job = subprocess.Popen(["bash", "job.sh"], cwd=folder, start_new_session=True)
    try:
        wait_for(folder / "started")
        wait_for(folder / "waits")
        yield job
    finally:
        with suppress(ProcessLookupError):  # where all have ended
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def wait_for(path: Path) -> None:
    ends_at = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < ends_at, f"no {path.name}"
        time.sleep(0.02)


def told_to_scontrol(folder: Path) -> list[str]:
    return (folder / "scontrol.txt").read_text().splitlines()


def test_a_job_that_is_stopped_waits_for_what_is_saved_and_queues_itself_again(cluster: Path):
    with started(JOB, cluster) as job:
        job.send_signal(signal.SIGTERM)
        wait_for(cluster / "told")
        (cluster / "saved").touch()
        assert job.wait(timeout=30) == 0
    assert told_to_scontrol(cluster) == ["show hostnames machines[1-2]", "requeue 17"]


def test_a_job_that_does_not_wait_again_would_be_noticed(cluster: Path):
    """Negative control."""
    assert JOB.count(SECOND_WAIT) == 1
    with started(JOB.replace(SECOND_WAIT, ""), cluster) as job:
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 0
        (cluster / "saved").touch()
    assert told_to_scontrol(cluster) == ["show hostnames machines[1-2]"]


def test_a_job_that_finishes_is_over_and_its_command_is_sound(cluster: Path):
    with started(JOB, cluster) as job:
        (cluster / "finished").touch()
        assert job.wait(timeout=30) == 0
    assert told_to_scontrol(cluster) == ["show hostnames machines[1-2]"]
    arguments = (cluster / "torchrun.txt").read_text().splitlines()
    assert arguments[arguments.index("--rdzv-endpoint") + 1] == "first-machine:29500"
    require_torchrun(arguments)
