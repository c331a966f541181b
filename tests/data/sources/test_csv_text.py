"""Every row of a CSV file becomes a record of texts, at the line it begins on, or is refused."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base.errors import DataError
from finetooth.data.records import Record
from finetooth.data.sources import lines
from finetooth.data.sources.reading import read_records


def write(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def what(path: str) -> list[tuple[int, Any]]:
    return [(e.origin.line, e.fields if isinstance(e, Record) else e.fact) for e in read_records(path)]


def test_each_row_becomes_a_record_of_texts(tmp_path: Path):
    path = write(tmp_path, "a.csv", b'\xef\xbb\xbfprompt,response\r\n2+2?,4\r\n"a, ""b""",\xc3\xa9\r\n')
    assert what(path) == [
        (2, {"prompt": "2+2?", "response": "4"}),
        (3, {"prompt": 'a, "b"', "response": "é"}),
    ]


def test_a_row_begins_where_its_first_line_is(tmp_path: Path):
    path = write(tmp_path, "a.csv", 'q,a\n\n"one\n\ntwo",1\n   \n3,"4\r\n5"\n6,7')
    assert what(path) == [
        (3, {"q": "one\n\ntwo", "a": "1"}),
        (7, {"q": "3", "a": "4\r\n5"}),
        (9, {"q": "6", "a": "7"}),
    ]


def test_an_empty_cell_is_an_empty_text(tmp_path: Path):
    assert what(write(tmp_path, "a.csv", 'q,a\n,\n"",x\n')) == [
        (2, {"q": "", "a": ""}),
        (3, {"q": "", "a": "x"}),
    ]
    assert what(write(tmp_path, "a.csv", 'q\n""\n\nx\n')) == [(2, {"q": ""}), (4, {"q": "x"})]


def test_tabs_separate_the_values_of_a_tsv_file(tmp_path: Path):
    assert what(write(tmp_path, "a.tsv", "q\ta\n1,5\t2\n")) == [(2, {"q": "1,5", "a": "2"})]


def test_a_row_that_does_not_fit_is_bad_and_the_next_one_read(tmp_path: Path):
    path = write(tmp_path, "a.csv", "q,a\n1\n1,2,3\n1,\0\n1,2\n")
    assert what(path) == [
        (2, "1 values in 2 columns"),
        (3, "3 values in 2 columns"),
        (4, "a NUL character in the row"),
        (5, {"q": "1", "a": "2"}),
    ]


def test_json_in_a_cell_stays_text_however_deep(tmp_path: Path):
    deep = "[" * 100_000
    assert what(write(tmp_path, "a.csv", f"q\n{deep}\n")) == [(2, {"q": deep})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": holds no record; check that this is the right file"),
        (b"\n \n", ": holds no record; check that this is the right file"),
        (b"q,a\n\n", ": holds no record; check that this is the right file"),
        (
            b",q,a\n0,1,2\n",
            ":1: column 1 has no name; name it, or write the file without a column of row numbers",
        ),
        (b"\nq,a,q\n1,2,3\n", ":2: columns 1 and 3 are both named 'q'; rename or remove one"),
        (b"q\0,a\n", ":1: a NUL character in the header; save the file as UTF-8 text"),
        ("q,a\n".encode("utf-16-le"), ":1: a NUL character in the header; save the file as UTF-8 text"),
        ("q,a\n".encode("utf-16"), ": line 1 is not UTF-8 text; save the file as UTF-8"),
        (b'q,a\n1,2\n"x\n\xff",2\n', ": line 4 is not UTF-8 text; save the file as UTF-8"),
        (
            b'q,a\n1,2\n3,"4\n5,6\n',
            ":3: the row has a quoted value that does not end; close its quotation mark",
        ),
        (
            b'q,a\n1,2\n"3" x,4\n',
            ":3: the row has a quoted value that goes on behind its closing quotation mark; "
            "double each quotation mark within a quoted value",
        ),
        (
            b"q,a\r1,2\r3,4\r",
            ":1: the row has a carriage return outside of quotes; end rows with a line break",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, content: bytes, message: str):
    path = write(tmp_path, "a.csv", content)
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert str(caught.value) == path + message


def test_all_that_is_wrong_with_a_header_is_told_at_once(tmp_path: Path):
    path = write(tmp_path, "a.csv", "a,,a\n1,2,3\n")
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert len(caught.value.problems) == 2


def test_a_row_that_does_not_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lines, "MAX_ENTRY_BYTES", 20)
    message = (
        ":2: a row longer than 20 bytes; "
        "look there for a quotation mark that is not closed, or write shorter rows"
    )
    for content in ('q\n"' + "a\n" * 12, "q\n" + "a" * 30):
        path = write(tmp_path, "a.csv", content)
        with pytest.raises(DataError) as caught:
            list(read_records(path))
        assert str(caught.value) == path + message
    assert what(write(tmp_path, "a.csv", "q\n" + "a" * 18 + "\n")) == [(2, {"q": "a" * 18})]


def test_long_cells_are_read(tmp_path: Path):
    """The csv module's own limit is 128 KiB."""
    assert what(write(tmp_path, "a.csv", "q\n" + "a" * 500_000)) == [(2, {"q": "a" * 500_000})]


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@settings(deadline=None)
@given(
    rows=st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=5),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_the_standard_library_writes_comes_back(tmp_path_factory, rows: list[list[str]], ending: str):
    text = io.StringIO()
    csv.writer(text, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([["q", "a"], *rows])
    content = text.getvalue()
    entries = list(read_records(write(tmp_path_factory.mktemp("csv"), "a.csv", content)))
    assert [list(entry.fields.values()) for entry in entries if isinstance(entry, Record)] == rows
    starts = [1 + content[: _start_of(rows, number, ending)].count("\n") for number in range(len(rows))]
    assert [entry.origin.line for entry in entries] == starts


def _start_of(rows: list[list[str]], number: int, ending: str) -> int:
    """Where a row begins in what was written."""
    text = io.StringIO()
    csv.writer(text, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([["q", "a"], *rows[:number]])
    return len(text.getvalue())
