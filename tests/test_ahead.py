"""Data is prepared beside the loading of libraries, and nothing else changes."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_run

from finetooth import ahead
from finetooth.ahead import preparing_ahead
from finetooth.config.load import load_config
from finetooth.data.preparation import prepare_data


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 2)
    write_run(tmp_path, data={"cache_dir": "cache"})
    return Path("run.yaml")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started."""
    processes: list[subprocess.Popen[bytes]] = []

    class Kept(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, env: dict[str, str], **options: Any):
            super().__init__(*arguments, env=env, **options)
            self.environment = env
            processes.append(self)

    monkeypatch.setattr(ahead.subprocess, "Popen", Kept)
    return processes


def test_what_is_prepared_ahead_is_what_training_asks_for(
    run_file: Path, started: list[subprocess.Popen[bytes]]
):
    overrides = ["max_length=60", "seed=1"]
    with preparing_ahead(run_file, overrides):
        assert started[0].wait(60) == 0
        assert prepare_data(load_config(run_file, overrides)).is_reused
        assert not prepare_data(load_config(run_file)).is_reused, "negative control: other settings"


def test_it_is_gone_at_the_end_whatever_it_was_doing(run_file: Path, started: list[subprocess.Popen[bytes]]):
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), preparing_ahead(run_file, ()):
        raise KeyboardInterrupt
    assert time.monotonic() - before < 5
    assert started[0].returncode == -9
    assert not prepare_data(load_config(run_file)).is_reused, "and what it left is no obstacle"


def test_a_mistake_in_the_data_is_told_by_whoever_needs_it(
    run_file: Path, started: list[subprocess.Popen[bytes]], capfd: pytest.CaptureFixture[str]
):
    Path("train.jsonl").unlink()
    with preparing_ahead(run_file, ()):
        assert started[0].wait(60) != 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("set_to", "threads"), [(None, "3"), ("2", "2")])
def test_one_core_is_left_to_the_libraries_unless_threads_are_set(
    run_file: Path,
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    set_to: str | None,
    threads: str,
):
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 4)
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    if set_to is not None:
        monkeypatch.setenv("RAYON_NUM_THREADS", set_to)
    with preparing_ahead(run_file, ()):
        pass
    assert started[0].environment["RAYON_NUM_THREADS"] == threads


@pytest.mark.parametrize("why", ["2", "nonsense", "one core"])
def test_beside_other_ranks_and_on_one_core_nothing_is_started(
    run_file: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, why: str
):
    if why == "one core":
        monkeypatch.setattr(ahead.os, "cpu_count", lambda: 1)
    else:
        monkeypatch.setenv("WORLD_SIZE", why)
    with preparing_ahead(run_file, ()):
        pass
    assert started == []
