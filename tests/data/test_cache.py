"""What is prepared is made once, by one process; the others wait for it and learn when it failed or died."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base import files
from finetooth.base.errors import FinetoothError
from finetooth.base.files import check_folder
from finetooth.data import cache
from finetooth.data.cache import make_once

PREPARE = """
import sys
from finetooth.base.errors import FinetoothError
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.data.preparation import prepare_data
config = SFTConfig(
    model=ModelConfig(path="tokenizer"), output_dir="run",
    data=DataConfig(
        train="train.jsonl", dev=0.1, template="chatml", cache_dir="cache", max_length=int(sys.argv[1])))
try:
    prepared = prepare_data(config)
except FinetoothError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(prepared.is_reused, prepared.train.fingerprint)
"""


@pytest.fixture(autouse=True)
def in_a_folder_with_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_small_tokenizer(tmp_path / "tokenizer")
    lines = [json.dumps({"prompt": f"What is {n}?", "response": f"It is {n}."}) for n in range(3000)]
    Path("train.jsonl").write_text("\n".join(lines))


def start(*, rank: int | None = None, max_length: int = 100) -> subprocess.Popen[str]:
    launched = {} if rank is None else {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(max_length)],
        env={**os.environ, **launched},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_killed_processes_left_goes_when_anything_is_prepared():
    left, at_work = Path("cache/.prepared-1.partial-a"), Path("cache/.prepared-2.partial-b")
    for folder in (left, at_work):
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    with files._locked(at_work):  # pyright: ignore[reportPrivateUsage]
        make_once(Path("cache/prepared-3"), lambda partial: None)
    assert [path.name for path in sorted(Path("cache").iterdir())] == [at_work.name, "prepared-3"]


def wait_until_written() -> None:
    """Until a process is writing documents."""
    for _ in range(2000):
        with contextlib.suppress(OSError):
            if any(
                path.stat().st_size
                for path in Path("cache").glob(".prepared-*.partial-*/train/token_ids.bin")
            ):
                return
        time.sleep(0.01)
    raise AssertionError("nothing was written")


def test_of_several_launched_processes_the_first_prepares():
    second = start(rank=1)
    time.sleep(0.5)
    first = start(rank=0)
    printed = [process.communicate(timeout=120)[0].split() for process in (first, second)]
    assert [is_reused for is_reused, _ in printed] == ["False", "True"]
    assert printed[0][1] == printed[1][1]
    (folder,) = Path("cache").iterdir()
    assert check_folder(folder) == []


def test_those_that_wait_learn_of_a_failure():
    first, second = start(rank=0, max_length=2), start(rank=1, max_length=2)
    _, told = first.communicate(timeout=120)
    assert told.startswith("DataError: train.jsonl: none of ")
    _, told = second.communicate(timeout=120)
    assert told.startswith("FinetoothError: cache/prepared-")
    assert told.strip().endswith(": the process that prepared it failed; see what it said")
    # the note is of that launch; the next one is not misled
    again = [start(rank=rank, max_length=100) for rank in (0, 1)]
    assert [process.communicate(timeout=120)[0].split()[0] for process in again] == ["False", "True"]


def test_those_that_wait_learn_of_a_death():
    first, second = start(rank=0), start(rank=1)
    wait_until_written()
    first.kill()
    _, told = second.communicate(timeout=120)
    first.communicate()
    assert told.strip().endswith(": the process that prepared it died; see what it said")


def test_those_that_wait_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(FinetoothError) as caught:
        make_once(Path("cache/prepared-x"), lambda folder: None)
    assert str(caught.value) == (
        "cache/prepared-x: no process has prepared it for 0 minutes; "
        "see whether the first process of this machine runs"
    )


def test_a_second_run_takes_over_where_the_first_died():
    first = start()
    wait_until_written()
    first.send_signal(signal.SIGSTOP)  # so that it cannot finish before it dies
    second = start()
    time.sleep(0.5)
    first.kill()
    first.communicate()
    printed, told = second.communicate(timeout=120)
    assert printed.split()[0] == "False", told


def test_a_second_run_waits_for_the_first():
    first = start()
    wait_until_written()
    second = start()
    printed = [process.communicate(timeout=120)[0].split() for process in (first, second)]
    assert [is_reused for is_reused, _ in printed] == ["False", "True"]


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, bytes]]:
    """The files that were written after the first kill, with which those after the others are compared."""
    return {}


@pytest.mark.parametrize("instant", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_a_kill_at_any_instant_leaves_no_half_store(whole: dict[str, dict[str, bytes]], instant: float):
    process = start()
    wait_until_written()
    time.sleep(instant)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert all(check_folder(folder) == [] for folder in Path("cache").glob("prepared-*"))
    printed, told = start().communicate(timeout=120)
    assert printed, told
    (folder,) = Path("cache").glob("prepared-*")
    assert check_folder(folder) == []
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    del files["MANIFEST.json"], files["prepared.json"]  # they tell the time
    assert len(files) == 9
    assert whole.setdefault("files", files) == files


def test_a_failure_leaves_nothing_behind():
    def fail(folder: Path) -> None:
        (folder / "file").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make_once(Path("cache/prepared-x"), fail)
    assert os.listdir("cache") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_told():
    Path("cache").mkdir(mode=0o500)
    with pytest.raises(FinetoothError) as caught:
        make_once(Path("cache/prepared-x"), lambda folder: None)
    assert str(caught.value).startswith("cache/prepared-x: cannot be written (Permission denied); ")


def test_a_cache_below_a_file_is_told():
    Path("cache").write_text("")
    _, told = start().communicate(timeout=120)
    assert told.strip().startswith("FinetoothError: cache: cannot be written (")
    assert told.strip().endswith("; free space there or choose another place")


def test_a_full_disk_is_told():
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FinetoothError) as caught:
        make_once(Path("cache/prepared-x"), fill)
    assert re.fullmatch(
        r"cache/prepared-x: cannot be written \(No space left on device\), [\d,]+ bytes are free; "
        "free space there or choose another place",
        str(caught.value),
    )
    assert os.listdir("cache") == []
