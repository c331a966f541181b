"""Every entry of a JSON file becomes a record or a bad line, at its exact line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base.errors import DataError
from finetooth.data.records import Origin, Record
from finetooth.data.sources import lines
from finetooth.data.sources.json_text import NotARecordError, parse_object
from finetooth.data.sources.reading import BadLine, read_records

json_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
json_values = st.recursive(json_scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


def write(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(path: str) -> list[Record | BadLine]:
    return list(read_records(path))


def what(path: str) -> list[tuple[int, Any]]:
    return [(e.origin.line, e.fields if isinstance(e, Record) else e.fact) for e in read(path)]


def test_each_line_becomes_a_record_and_blank_lines_none(tmp_path: Path):
    path = write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"b": "\xc3\xa9"}')
    assert read(path) == [Record(Origin(path, 1), {"a": 1}), Record(Origin(path, 4), {"b": "é"})]


def test_a_json_list_gives_the_line_each_entry_begins_on(tmp_path: Path):
    path = write(
        tmp_path, "a.json", '\ufeff\n[\n{"a":\n 1},\n\n {"b": "],[{\\""}, {"c": 3}\n,\n{"d": 4}]\n\n'
    )
    assert what(path) == [(3, {"a": 1}), (6, {"b": '],[{"'}), (7, {"c": 3}), (8, {"d": 4})]


def test_a_json_file_that_is_no_list_is_read_by_lines(tmp_path: Path):
    assert what(write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ('{"a": 1', "broken JSON at character 8: expecting ',' delimiter"),
        ('{"a": 1} x', "broken JSON at character 10: extra data"),
        ('{"a": "x\x01"}', "broken JSON at character 9: invalid control character at"),
        ("[1, 2]", "a list instead of an object"),
        ('"text"', "a text instead of an object"),
        ("12", "a number instead of an object"),
        ("1.5", "a number instead of an object"),
        ("true", "true instead of an object"),
        ("null", "null instead of an object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": ' + "9" * 5000 + "}", "a number has too many digits"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice in one object"),
        ('{"a": "\\ud800"}', "half of a surrogate pair (\\ud800 to \\udfff) stands alone in a text"),
        ('{"\\uDC00": 1}', "half of a surrogate pair (\\ud800 to \\udfff) stands alone in a text"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 100 levels"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested deeper than 100 levels"),
    ],
)
def test_each_kind_of_bad_entry_is_named_in_lines_and_in_lists(tmp_path: Path, line: str, fact: str):
    path = write(tmp_path, "a.jsonl", f'{{"good": 1}}\n\n{line}\n{{"good": 2}}\n')
    assert what(path) == [(1, {"good": 1}), (3, fact), (4, {"good": 2})]
    if line.count("[") == line.count("]") and line.count("{") == line.count("}"):
        path = write(tmp_path, "a.json", f'[{{"good": 1}},\n\n{line}\n,{{"good": 2}}]\n')
        assert what(path) == [(1, {"good": 1}), (3, fact), (4, {"good": 2})]


def test_depth_and_surrogate_pairs_within_bounds_are_read():
    assert parse_object('{"a": ' + "[" * 99 + "]" * 99 + "}")
    assert parse_object('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert parse_object('{"a": "\\\\ud800 [[[ {{{"}') == {"a": "\\ud800 [[[ {{{"}
    assert parse_object('{"a": "' + "[" * 1000 + '"}') == {"a": "[" * 1000}


def test_a_broken_text_in_a_list_spoils_its_entry_only(tmp_path: Path):
    assert what(write(tmp_path, "a.json", '[{"a": 1}, {"a": "x}]')) == [
        (1, {"a": 1}),
        (2, "broken JSON at character 7: unterminated string starting at"),
    ]
    path = write(tmp_path, "a.json", '[{"a": 1},\n{"a": "x,\n"b": 2},\n{"c": 3}]')
    assert what(path) == [
        (1, {"a": 1}),
        (2, "broken JSON at character 10: invalid control character at"),
        (4, {"c": 3}),
    ]


def test_missing_entries_of_a_list_are_bad(tmp_path: Path):
    assert what(write(tmp_path, "a.json", '[{"a": 1},\n,\n]')) == [
        (1, {"a": 1}),
        (2, "broken JSON at character 1: expecting value"),
        (3, "broken JSON at character 1: expecting value"),
    ]


NO_RECORD = "holds no record; check that this is the right file"
SAVE_UTF8 = "save the file as UTF-8"
OVER_LINES = (
    "begins with an object that goes on over several lines; "
    "write one object per line, or a JSON list of objects (.json)"
)
NOT_ENDED = (
    "the list does not end; its last entry begins on line {}; "
    "look there for a missing bracket or quotation mark"
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", NO_RECORD),
        ("a.jsonl", b"\xef\xbb\xbf \r\n\n", NO_RECORD),
        ("a.json", b"[ ]", NO_RECORD),
        ("a.json", b'{\n  "prompt": "2+2?",\n  "response": "4"\n}\n', OVER_LINES),
        (
            "a.json",
            b'\xef\xbb\xbf\n{"data": [ \r\n {"prompt": "2+2?"}\n]}',
            f"{OVER_LINES}; if its 'data' holds the records, write only that list",
        ),
        ("a.jsonl", b'{\n"prompt": "2+2?"}', OVER_LINES),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}', f"line 2 is not UTF-8 text; {SAVE_UTF8}"),
        ("a.json", b'[{"a": 1},\n{"a":\n"\xe9"}]', f"line 3 is not UTF-8 text; {SAVE_UTF8}"),
        ("a.json", '{"a": 1}'.encode("utf-16"), f"line 1 is not UTF-8 text; {SAVE_UTF8}"),
        ("a.json", b'[{"a": 1},\n\n{"a": 1\n', NOT_ENDED.format(3)),
        ("a.json", b'[{"a": 1}, {"a": ["x}', NOT_ENDED.format(1)),
        (
            "a.json",
            b'[{"a": 1}\n}]',
            "a bracket on line 2 closes what was not opened; look there for a bracket too many",
        ),
        (
            "a.json",
            b'[{"a": 1}]\n\n{"a": 2}',
            "text after the end of the list, on line 3; "
            "join everything into one list, or write one object per line into a .jsonl file",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, name: str, content: bytes, message: str):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_huge_line_is_refused_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "MAX_ENTRY_BYTES", 20)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 7)
    exact = '{"a": "' + "x" * 11 + '"}'
    assert len(exact) == 20
    path = write(tmp_path, "a.jsonl", exact + "\n" + '{"a": "' + "x" * 50 + '"}\n' + exact)
    assert what(path) == [(1, {"a": "x" * 11}), (2, "longer than 20 bytes"), (3, {"a": "x" * 11})]
    path = write(tmp_path, "a.json", '[{"a": 1},\n' + '{"a": "' + "x" * 50 + '"}]')
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: the entry that begins on line 2 is longer than 20 bytes; "
        "look there for a missing bracket, or write shorter entries"
    )


@settings(deadline=None)
@given(
    objects=st.lists(json_objects, min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 9),
)
def test_lists_are_read_as_the_standard_library_reads_them(
    tmp_path_factory, objects: list[dict[str, Any]], indent: int | None, ascii_only: bool, chunk: int
):
    folder = tmp_path_factory.mktemp("lists")
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk)
        entries = read(write(folder, "a.json", text))
    assert [e.fields for e in entries if isinstance(e, Record)] == json.loads(text)
    if indent is None:  # all on one line
        assert [e.origin.line for e in entries] == list(range(1, len(objects) + 1))
    else:
        assert [e.origin.line for e in entries] == entry_lines(text)


def entry_lines(text: str) -> list[int]:
    """The line of each entry, by letting the standard library decode one value after the other."""
    numbers, position = [], 1
    while True:
        while text[position] in " \n,":
            position += 1
        if text[position] == "]":
            return numbers
        numbers.append(text.count("\n", 0, position) + 1)
        _, position = json.JSONDecoder().raw_decode(text, position)


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=60) | st.text('[]{}",:\\ \n1a', max_size=40).map(str.encode))
def test_any_bytes_give_entries_or_a_data_error(tmp_path_factory, content: bytes):
    folder = tmp_path_factory.mktemp("any")
    for name in ("a.json", "a.jsonl"):
        try:
            entries = read(write(folder, name, content))
        except DataError:
            continue
        for entry in entries:
            assert isinstance(entry, Record | BadLine)
            assert 1 <= entry.origin.line <= content.count(b"\n") + 1


@settings(deadline=None)
@given(fields=json_objects)
def test_a_strictly_read_object_equals_the_plainly_read_one(fields: dict[str, Any]):
    text = json.dumps(fields)
    if "\\ud" in text:
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            with pytest.raises(NotARecordError):
                parse_object(text)
            return
    assert parse_object(text) == json.loads(text)


def test_memory_stays_flat_over_many_records(tmp_path: Path):
    import tracemalloc

    line = json.dumps({"prompt": "x" * 500, "response": "y" * 500})
    paths = [
        write(tmp_path, "a.jsonl", "\n".join([line] * 20_000)),
        write(tmp_path, "a.json", "[" + ",".join([line] * 20_000) + "]"),
    ]
    for path in paths:
        tracemalloc.start()
        assert sum(1 for _ in read_records(path)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 1024 * 1024 < os.path.getsize(path)


def test_reading_costs_little_more_than_decoding(tmp_path: Path):
    """Measured as a ratio of processor time, which other work on the machine changes least."""
    import time

    row = json.dumps({"question": "How many apples? " * 10, "answer": "She has 3 * 4 = <<3*4=12>>12.\n" * 8})
    path = write(tmp_path, "a.jsonl", (row + "\n") * 5000)
    lines_of_text = Path(path).read_bytes().splitlines()

    def decode() -> None:
        for line in lines_of_text:
            json.loads(line)

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    bare = min(seconds(decode) for _ in range(5))
    assert min(seconds(lambda: read(path)) for _ in range(5)) < 4 * bare


def test_the_real_files_are_read_as_the_standard_library_reads_them(shared: Path):
    for name in ("alpaca_999.json", "toolcall_sharegpt_300.json", "sharegpt_dummy_500.json"):
        path = shared / "data" / name
        expected = json.loads(path.read_text())
        assert [e.fields for e in read_records(path) if isinstance(e, Record)] == expected
    lines = (shared / "data/gsm8k/train.jsonl").read_text().splitlines()
    entries = list(read_records(shared / "data/gsm8k/train.jsonl"))
    assert [(e.origin.line, e.fields) for e in entries if isinstance(e, Record)] == [
        (number, json.loads(line)) for number, line in enumerate(lines, start=1)
    ]
