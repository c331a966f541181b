"""A run directory is claimed by its own run only, and tells how the run was made."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.config.load import load_config
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.training import run_lock
from finetooth.training.run_directory import Resume, claimed_run_directory, describe_run, write_json

STATES = ("absent", "empty", "run", "foreign", "file")


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An output_dir in the state that the test names."""
    path = tmp_path / "out"
    if request.param == "file":
        path.touch()
    elif request.param != "absent":
        path.mkdir()
    if request.param in ("run", "foreign"):
        (path / {"run": "config.yaml", "foreign": "thesis.tex"}[request.param]).write_text("mine")
    return path


NO_RUN = "output_dir: {} holds no run; leave --resume out, or write --resume auto"
FOREIGN = "output_dir: {} holds files that are not a run's; name an empty or new folder"
FILE = "output_dir: {} is a file; name a folder"
REFUSALS: dict[tuple[str, Resume], str] = {
    ("absent", "must"): NO_RUN,
    ("empty", "must"): NO_RUN,
    ("run", "never"): "output_dir: {} already holds a run; "
    "add --resume auto to start it anew, or name another folder",
    ("foreign", "never"): FOREIGN,
    ("foreign", "must"): FOREIGN,
    ("foreign", "auto"): FOREIGN,
    ("file", "never"): FILE,
    ("file", "must"): FILE,
    ("file", "auto"): FILE,
}


@pytest.mark.parametrize("resume", ["never", "must", "auto"])
@pytest.mark.parametrize(("place", "state"), [(state, state) for state in STATES], indirect=["place"])
def test_a_folder_is_claimed_or_refused(place: Path, state: str, resume: Resume):
    before = sorted(place.parent.rglob("*"))
    expected = REFUSALS.get((state, resume))
    if expected is None:
        with claimed_run_directory(place, resume=resume):
            assert place.is_dir()
    else:
        with pytest.raises(ConfigError) as caught, claimed_run_directory(place, resume=resume):
            pass
        assert str(caught.value) == expected.format(place)
    assert set(before) <= set(place.parent.rglob("*")) <= {*before, place}, "nothing but the folder is made"


def test_a_run_with_a_checkpoint_can_be_resumed(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught, claimed_run_directory(tmp_path, resume="never"):
        pass
    assert str(caught.value) == (
        f"output_dir: {tmp_path} already holds a run; add --resume, or name another folder"
    )


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path):
    out = tmp_path / "out"
    with claimed_run_directory(out, resume="auto"):
        held = json.loads((out / ".lock").read_text())
        assert (held["host"], held["pid"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(ConfigError) as caught, claimed_run_directory(out, resume="auto"):
            pass
        assert str(caught.value) == (
            f"output_dir: process {os.getpid()} on {socket.gethostname()}, since {held['since']}, "
            f"is writing into {out}; wait for it, or stop it"
        )
        assert (out / ".lock").exists(), "who is refused leaves the lock alone"
        (out / "config.yaml").touch()
    with claimed_run_directory(out, resume="auto"):
        pass
    assert [path.name for path in out.iterdir()] == ["config.yaml"]


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path: Path):
    child = os.fork()
    if child == 0:
        with claimed_run_directory(tmp_path / "out", resume="auto"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert json.loads((tmp_path / "out" / ".lock").read_text())["pid"] == child
    with claimed_run_directory(tmp_path / "out", resume="never"):
        assert json.loads((tmp_path / "out" / ".lock").read_text())["pid"] == os.getpid()


def no_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize("host", [socket.gethostname(), "node7"])
def test_where_there_are_no_locks_the_holder_named_in_the_file_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
):
    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    holder = {"host": host, "pid": os.getpid(), "since": "2026-11-20T19:55:40+00:00"}
    (tmp_path / ".lock").write_text(json.dumps(holder))
    with pytest.raises(ConfigError) as caught, claimed_run_directory(tmp_path, resume="auto"):
        pass
    assert str(caught.value) == (
        f"output_dir: process {os.getpid()} on {host}, since 2026-11-20T19:55:40+00:00, may be writing into "
        f"{tmp_path}, whose file system knows no locks; if it has ended, remove {tmp_path / '.lock'}"
    )
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE)
    holder |= {"host": socket.gethostname(), "pid": int(ended.stdout)}
    (tmp_path / ".lock").write_text(json.dumps(holder))
    with claimed_run_directory(tmp_path, resume="auto"):
        pass


def test_what_is_known_before_the_first_step_is_written(tmp_path: Path):
    (tmp_path / "ledger.jsonl").write_text('{"state": "kept"}\n')
    run = tmp_path / "run"
    config = SFTConfig(model=ModelConfig(path="base"), data=DataConfig(train="a.jsonl"), output_dir=str(run))
    describe_run(
        run,
        config=config,
        devices=DeviceManager("cpu"),
        schedule={"num_steps": 3},
        ledger=tmp_path / "ledger.jsonl",
        template={"name": "chatml"},
    )
    assert sorted(path.name for path in run.iterdir()) == [
        *("config.yaml", "environment.json", "ledger.jsonl", "schedule.json")
    ]
    assert load_config(run / "config.yaml") == config
    assert json.loads((run / "schedule.json").read_text()) == {"num_steps": 3}
    assert (run / "ledger.jsonl").read_text() == '{"state": "kept"}\n'
    environment = json.loads((run / "environment.json").read_text())
    names = {"python", "platform", "device", "device_type", "precision", "command", "versions", "template"}
    assert set(environment) == names
    assert environment["device"].startswith("cpu, ")
    assert {"finetooth", "torch", "transformers"} <= set(environment["versions"])


def test_the_environment_tells_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_tell")
    (tmp_path / "ledger.jsonl").touch()
    config = SFTConfig(model=ModelConfig(path="b"), data=DataConfig(train="a.jsonl"), output_dir="run")
    describe_run(
        tmp_path / "run",
        config=config,
        devices=DeviceManager("cpu"),
        schedule={},
        ledger=tmp_path / "ledger.jsonl",
        template={"name": "chatml"},
    )
    written = "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert "hf_do_not_tell" not in written


def test_json_is_written_for_people(tmp_path: Path):
    write_json(tmp_path / "summary.json", {"state": "finished", "loss": 0.5})
    assert (tmp_path / "summary.json").read_text() == '{\n "state": "finished",\n "loss": 0.5\n}\n'
