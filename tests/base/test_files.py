"""Files and folders appear complete or not at all."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base import files
from finetooth.base.errors import FinetoothError
from finetooth.base.files import check_folder, new_folder, passing_folder, sha256_of, write_atomically


def write_sample(path: Path, *, replace: bool = False, text: str = "one") -> None:
    with new_folder(path, replace=replace) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)
        (folder / "b.bin").write_bytes(b"\x00" * 10)


def test_a_written_file_holds_the_bytes_and_leaves_nothing_beside_it(tmp_path: Path):
    target = tmp_path / "deep" / "state.json"
    write_atomically(target, b"first")
    write_atomically(target, b"second")
    assert target.read_bytes() == b"second"
    assert os.listdir(target.parent) == ["state.json"]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "state.json"
    write_atomically(target, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(FinetoothError) as caught:
        write_atomically(target, b"new")
    told = re.escape(f"{target}: cannot be written (No space left on device), ")
    told += r"[\d,]+ bytes are free; free space there or choose another place"
    assert re.fullmatch(told, str(caught.value))
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_place_below_a_file_is_told_plainly(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for attempt in (lambda p: write_atomically(p, b""), write_sample):
        with pytest.raises(FinetoothError) as caught:
            attempt(tmp_path / "file" / "inner")
        assert str(caught.value) == (
            f"{tmp_path / 'file' / 'inner'}: cannot be written (File exists); "
            "free space there or choose another place"
        )


def test_a_place_where_no_folder_can_be_made_is_told_plainly(tmp_path: Path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place, reason in (
        (tmp_path / "loop" / "y" / "x", "Too many levels of symbolic links"),
        (tmp_path / ("n" * 300) / "x", "File name too long"),
    ):
        sentence = f"{place}: cannot be written ({reason}); free space there or choose another place"
        with pytest.raises(FinetoothError) as caught:
            write_atomically(place, b"")
        assert str(caught.value) == sentence
        with pytest.raises(FinetoothError) as caught, new_folder(place):
            pass
        assert str(caught.value) == sentence


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_place_below_proc_is_told_plainly():
    with pytest.raises(FinetoothError) as caught, new_folder(Path("/proc/finetooth/x")):
        pass
    assert str(caught.value) == (
        "/proc/finetooth/x: cannot be written (No such file or directory); "
        "free space there or choose another place"
    )


def test_an_error_about_another_file_passes_unchanged(tmp_path: Path):
    def read_something_forbidden() -> None:
        with new_folder(tmp_path / "made"):
            raise PermissionError(errno.EACCES, "denied", "/elsewhere/secret")

    with pytest.raises(PermissionError):
        read_something_forbidden()


def test_a_new_folder_is_complete_and_its_manifest_true(tmp_path: Path):
    write_sample(tmp_path / "made")
    manifest = json.loads((tmp_path / "made" / "MANIFEST.json").read_text())
    assert manifest == {
        "files": {
            "b.bin": {"size": 10, "sha256": sha256_of(tmp_path / "made" / "b.bin")},
            "inner/a.txt": {
                "size": 3,
                "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
            },
        }
    }
    assert check_folder(tmp_path / "made") == []
    assert os.listdir(tmp_path) == ["made"]


def test_a_block_that_raises_leaves_nothing(tmp_path: Path):
    def fails() -> None:
        with new_folder(tmp_path / "made") as folder:
            (folder / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path):
    write_sample(tmp_path / "made", text="old")
    with pytest.raises(FileExistsError):
        write_sample(tmp_path / "made", text="new")
    assert (tmp_path / "made/inner/a.txt").read_text() == "old"
    write_sample(tmp_path / "made", text="new", replace=True)
    assert (tmp_path / "made/inner/a.txt").read_text() == "new"
    assert check_folder(tmp_path / "made") == []
    assert os.listdir(tmp_path) == ["made"]


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    write_sample(tmp_path / "made", text="old")
    write_sample(tmp_path / "made", text="new", replace=True)
    assert (tmp_path / "made/inner/a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["made"]


def test_the_slower_of_two_writers_is_told(tmp_path: Path):
    both_writing = threading.Barrier(2)
    outcomes: list[str] = []

    def write(text: str) -> None:
        try:
            with new_folder(tmp_path / "made") as folder:
                (folder / "a.txt").write_text(text)
                both_writing.wait()
        except FileExistsError:
            outcomes.append("exists")
        else:
            outcomes.append("written")

    writers = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(outcomes) == ["exists", "written"]
    assert check_folder(tmp_path / "made") == []
    assert os.listdir(tmp_path) == ["made"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / "b.bin").unlink(), ["b.bin: missing"]),
        (lambda f: (f / "b.bin").write_bytes(b"123"), ["b.bin: 3 bytes instead of 10"]),
        (lambda f: (f / "b.bin").write_bytes(b"\x01" * 10), ["b.bin: its content differs from its hash"]),
        (lambda f: (f / "inner" / "c").write_text(""), ["inner/c: not in the manifest"]),
        (lambda f: (f / "MANIFEST.json").unlink(), ["MANIFEST.json: missing"]),
        (lambda f: (f / "MANIFEST.json").write_text("{"), ["MANIFEST.json: unreadable"]),
        (lambda f: (f / "MANIFEST.json").write_text("[]"), ["MANIFEST.json: unreadable"]),
        (lambda f: (f / "MANIFEST.json").write_text('{"files": {"a": 1}}'), ["MANIFEST.json: unreadable"]),
    ],
)
def test_each_kind_of_damage_is_named(tmp_path: Path, damage, expected: list[str]):
    write_sample(tmp_path / "made")
    damage(tmp_path / "made")
    assert check_folder(tmp_path / "made") == expected


def test_without_hashes_only_names_and_sizes_count(tmp_path: Path):
    write_sample(tmp_path / "made")
    (tmp_path / "made/b.bin").write_bytes(b"\x01" * 10)
    assert check_folder(tmp_path / "made", hashes=False) == []
    (tmp_path / "made/b.bin").write_bytes(b"\x01" * 11)
    assert check_folder(tmp_path / "made", hashes=False) == ["b.bin: 11 bytes instead of 10"]


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path):
    write_sample(tmp_path / "made")
    (tmp_path / "outside").write_text("x")
    entry = {"files": {"../outside": {"size": 1, "sha256": sha256_of(tmp_path / "outside")}}}
    (tmp_path / "made/MANIFEST.json").write_text(json.dumps(entry))
    assert "../outside: missing" in check_folder(tmp_path / "made")


@settings(deadline=None, max_examples=30)
@given(content=st.binary(max_size=50), position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(tmp_path_factory, content: bytes, position: int, bit: int):
    folder_path = tmp_path_factory.mktemp("bits") / "made"
    with new_folder(folder_path) as folder:
        (folder / "a").write_bytes(content + b"!")
    damaged = bytearray(content + b"!")
    damaged[position % len(damaged)] ^= 1 << bit
    (folder_path / "a").write_bytes(damaged)
    assert check_folder(folder_path) == ["a: its content differs from its hash"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from finetooth.base.files import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path):
    target = tmp_path / "made"
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(target)])
    assert killed.returncode == -9
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".made.partial-")
    os.utime(leftover, (0, 0))
    write_sample(target)
    assert os.listdir(tmp_path) == ["made"]


KILLED_BESIDE_A_CHILD = """
import os, signal, subprocess, sys
from pathlib import Path
from finetooth.base.files import passing_folder
with passing_folder(Path(sys.argv[1])) as (folder, held):
    child = subprocess.Popen(["sleep", "100"], stdout=subprocess.DEVNULL, pass_fds=[held] * int(sys.argv[2]))
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("is_held", [True, False])
def test_a_folder_that_a_child_of_the_killed_process_holds_stays(tmp_path: Path, is_held: bool):
    """Negative control: of a child that does not hold it, nothing is known, and the folder goes."""
    command = [sys.executable, "-c", KILLED_BESIDE_A_CHILD, str(tmp_path / "passing"), str(int(is_held))]
    child = int(subprocess.run(command, stdout=subprocess.PIPE).stdout)
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    try:
        with passing_folder(tmp_path / "passing") as (folder, _):
            assert set(tmp_path.iterdir()) == ({left, folder} if is_held else {folder})
    finally:
        os.kill(child, signal.SIGKILL)
    while is_held and is_held_by_any(left):
        time.sleep(0.01)
    with passing_folder(tmp_path / "passing") as (folder, _):
        assert list(tmp_path.iterdir()) == [folder]
    assert not any(tmp_path.iterdir())


def is_held_by_any(folder: Path) -> bool:
    """Whether a process holds a folder, also one that has just been killed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_a_folder_still_being_written_is_not_a_leftover(tmp_path: Path):
    target = tmp_path / "made"
    with new_folder(target) as folder:
        os.utime(folder, (0, 0))
        write_sample(target)
        assert folder.exists()
        write_sample(target, replace=True)
        assert folder.exists()
        (tmp_path / "made").rename(tmp_path / "other")
    assert check_folder(target) == []
