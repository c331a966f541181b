"""One door for every kind of file: what is no file, of another kind, compressed or damaged is told."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base.errors import DataError
from finetooth.data.records import Record
from finetooth.data.sources import lines
from finetooth.data.sources.reading import BadLine, read_records

WRITE_JSONL = "write one JSON object per line into a file whose name ends in .jsonl"


def write(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def what(path: str) -> list[tuple[int, Any]]:
    return [(e.origin.line, e.fields if isinstance(e, Record) else e.fact) for e in read_records(path)]


def refusal(path: str) -> str:
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"q": "2"}\n{"q": "3"}\n'),
        ("a.NDJSON", '{"q": "2"}\n{"q": "3"}\n'),
        ("a.json", '[{"q": "2"},\n{"q": "3"}]\n'),
        ("a.csv", "q\n2\n3\n"),
        ("a.tsv", "q\n2\n3\n"),
    ],
)
def test_the_ending_says_how_a_file_is_read_plain_or_compressed(tmp_path: Path, name: str, content: str):
    first = 2 if name.endswith("sv") else 1
    expected = [(first, {"q": "2"}), (first + 1, {"q": "3"})]
    assert what(write(tmp_path, name, content)) == expected
    assert what(write(tmp_path, name + ".gz", gzip.compress(content.encode()))) == expected
    assert what(write(tmp_path, name + ".GZ", gzip.compress(b"\xef\xbb\xbf" + content.encode()))) == expected


def test_each_record_has_a_place_of_its_own(tmp_path: Path):
    told = what(write(tmp_path, "a.json", '[{"q": 1}, {"q": 2},\n{"q": NaN}, {"q": 4},\n\n\n\n{"q": 5}]'))
    assert told == [(1, {"q": 1}), (2, {"q": 2}), (3, "NaN is not JSON"), (4, {"q": 4}), (6, {"q": 5})]


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("a", "its name has no ending"),
        ("a.txt", "its name ends in '.txt'"),
        ("a.tar.gz", "its name ends in '.tar.gz'"),
        ("a.parquet.gz", "its name ends in '.parquet.gz'"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, name: str, fact: str):
    assert refusal(write(tmp_path, name, "{}")) == f"{fact}; {WRITE_JSONL}"


def test_what_is_no_file_is_told_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.symlink("/dev/zero", tmp_path / "zero.jsonl")
    for name, message in [
        ("no.jsonl", "no such file; check the path, which is relative to the working directory"),
        (".", "a folder; name one file"),
        ("pipe.jsonl", "not a regular file; copy its content to a file"),
        ("zero.jsonl", "not a regular file; copy its content to a file"),
    ]:
        with pytest.raises(DataError) as caught:
            read_records(f"{tmp_path}/{name}")
        assert str(caught.value) == f"{tmp_path}/{name}: {message}"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz"])
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    path = write(tmp_path, name, "{}")

    def denied(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(path) == "cannot be read (Permission denied); allow reading it"


def test_compression_that_is_damaged_or_not_named_is_told(tmp_path: Path):
    content = "".join(json.dumps({"number": number}) + "\n" for number in range(50_000)).encode()
    packed = gzip.compress(content)
    again = "write or copy it again"
    assert refusal(write(tmp_path, "a.jsonl.gz", packed[:-9])) == f"its gzip data is cut off; {again}"
    assert refusal(write(tmp_path, "a.jsonl.gz", packed[:9])) == f"its gzip data is cut off; {again}"
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    assert refusal(write(tmp_path, "a.jsonl.gz", bytes(flipped))) == f"its gzip data is damaged; {again}"
    no_block = packed[:10] + b"\xff" * 100 + packed[110:]
    assert refusal(write(tmp_path, "a.jsonl.gz", no_block)) == f"its gzip data is damaged; {again}"
    wrong_sum = packed[:-8] + b"\0\0\0\0" + packed[-4:]
    assert refusal(write(tmp_path, "a.jsonl.gz", wrong_sum)) == f"its gzip data is damaged; {again}"
    assert refusal(write(tmp_path, "a.jsonl.gz", content)) == f"its gzip data is damaged; {again}"
    assert refusal(write(tmp_path, "a.jsonl.gz", gzip.compress(packed))) == (
        "compressed twice by gzip; decompress it once"
    )
    assert refusal(write(tmp_path, "a.jsonl", packed)) == (
        "compressed by gzip, which its name does not say; let its name end in .gz"
    )
    assert refusal(write(tmp_path, "a.jsonl.gz", gzip.compress(b""))).startswith("holds no record")
    assert len(what(write(tmp_path, "a.jsonl.gz", packed))) == 50_000  # negative control: whole it is read
    two = gzip.compress(content) + gzip.compress(content)
    assert len(what(write(tmp_path, "a.jsonl.gz", two))) == 100_000  # gzip files may be joined


MEASURE = """
import pathlib, re, sys
from finetooth.data.sources.reading import read_records

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024

before = peak()
try:
    entries = [type(entry).__name__ for entry in read_records(sys.argv[1])]
except Exception as error:
    entries = [str(error)]
print(entries[:3], peak() - before)
"""


def peak_growth(path: str) -> tuple[str, int]:
    """What reading gives, and by how many MiB it raises the peak memory of a process of its own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak memory of a process is read from /proc")
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    entries, growth = done.stdout.strip().rsplit(" ", 1)
    return entries, int(growth)


GIGABYTE = 1024**3
LIMIT_MIB = 4 * lines.MAX_ENTRY_BYTES // 1024**2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start", "says"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": "', "['Record', 'BadLine', 'Record']"),
        ("a.json", b'[{"a": 1},\n{"a": "', "the entry that begins on line 2 is longer than"),
        ("a.csv", b'a\n1\n"', "3: a row longer than"),
    ],
)
def test_a_line_of_a_gigabyte_does_not_fill_the_memory(tmp_path: Path, name: str, start: bytes, says: str):
    path = write(tmp_path, name, start)
    with Path(path).open("r+b") as file:
        file.seek(GIGABYTE)
        file.write(b'\n{"a": 2}\n')
    entries, growth = peak_growth(path)
    assert says in entries
    assert growth < LIMIT_MIB
    control = write(tmp_path, "b.jsonl", b'{"a": "' + b"x" * (lines.MAX_ENTRY_BYTES - 10) + b'"}')
    entries, growth = peak_growth(control)  # negative control: what is held is seen
    assert (entries, growth > 64) == ("['Record']", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "num_mebibytes"),
    [("a.jsonl.gz", b" ", 512), ("a.csv.gz", b"x", 512), ("a.jsonl.gz", b"\n", 8)],
)
def test_what_unpacks_to_a_thousand_times_its_size_does_not_fill_the_memory(
    tmp_path: Path, name: str, content: bytes, num_mebibytes: int
):
    path = str(tmp_path / name)
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(num_mebibytes):
            file.write(content * 1024**2)
    assert os.path.getsize(path) * 900 < num_mebibytes * 1024**2
    _, growth = peak_growth(path)
    assert growth < LIMIT_MIB


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.jsonl.gz", "a.parquet", "a.arrow"]
)
@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=80) | st.text('[]{}",:\\ \n\r\t\0"1a', max_size=40).map(str.encode))
def test_any_bytes_give_entries_or_a_data_error(tmp_path_factory, name: str, content: bytes):
    path = write(tmp_path_factory.mktemp("any"), name, content)
    try:
        entries = list(read_records(path))
    except DataError:
        return
    assert entries
    for entry in entries:
        assert isinstance(entry, Record | BadLine)
        assert 1 <= entry.origin.line <= content.count(b"\n") + 1


@settings(deadline=None)
@given(data=st.data())
def test_damaged_gzip_gives_entries_or_a_data_error(tmp_path_factory, data: st.DataObject):
    packed = bytearray(gzip.compress(b'{"a": "some text"}\n' * 50))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("gzip"), "a.jsonl.gz", bytes(packed))
    try:
        entries = what(path)
    except DataError:
        return
    assert len(entries) == 50  # the sums at the end of gzip data hold, or what was changed says nothing


@settings(deadline=None)
@given(content=st.text('{}[]",:1 \n\r\u00e9"', max_size=60))
def test_every_line_that_is_not_blank_is_an_entry(tmp_path_factory, content: str):
    raw = content.encode()
    if not raw.strip() or raw.lstrip().split(b"\n")[0].rstrip()[-1:] in (b"{", b"["):
        return  # no record, or refused because it begins over several lines
    entries = what(write(tmp_path_factory.mktemp("lines"), "a.jsonl", raw))
    assert [line for line, _ in entries] == [
        number for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()
    ]
