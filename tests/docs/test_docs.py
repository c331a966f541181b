"""The documents say what is: their examples run, their files and tests exist, their records are read."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from finetooth.data.formats.reading import BadRecord, detect_format, to_conversation
from finetooth.data.records import Origin, Record

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path for folder in (".", "docs", "examples") for path in (ROOT / folder).glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"`([\w/]+\.py)`")
LINK = re.compile(r"\]\(([^)#]+)(?:#[\w-]+)?\)")


def blocks_of(text: str) -> list[tuple[str, str]]:
    """Every fenced block with its language, in order."""
    return [(match[1], match[2]) for match in BLOCK.finditer(text)]


def run_examples(text: str) -> int:
    """Runs the python blocks one after the other; a text block behind one is what it prints."""
    blocks, names, num_run = blocks_of(text), {}, 0
    for (language, code), (following, expected) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "example", "exec"), names)
            num_run += 1
            assert following != "text" or printed.getvalue().rstrip() == expected.rstrip()
    return num_run


@pytest.mark.parametrize(
    ("name", "least"), [("data.md", 2), ("masks.md", 2), ("library.md", 4), ("scale.md", 1)]
)
def test_the_examples_run_and_print_what_is_shown(
    name: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert run_examples((ROOT / "docs" / name).read_text(encoding="utf-8")) >= least


def test_an_example_that_prints_something_else_is_noticed():
    """Negative control."""
    with pytest.raises(AssertionError):
        run_examples("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")


def test_every_record_shown_is_one_that_is_read():
    blocks = blocks_of((ROOT / "docs" / "data.md").read_text(encoding="utf-8"))
    lines = [line for language, text in blocks if language == "json" for line in text.splitlines()]
    assert len(lines) == 6
    for line in lines:
        fields = json.loads(line)
        record_format = detect_format(fields)
        assert record_format is not None
        record = Record(Origin("docs", 1), fields)
        assert not isinstance(to_conversation(record, format=record_format), BadRecord)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_link_leads_somewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]
    folders = (ROOT, ROOT / "src" / "finetooth")
    assert not [name for name in NAMED_FILE.findall(text) if not any((f / name).exists() for f in folders)]


def test_every_test_that_a_promise_names_exists():
    named = promised_tests((ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8"))
    assert len(named) > 50
    assert not [(file, name) for file, name in named if name not in names_of_tests(ROOT / file)]


def test_a_promise_that_names_no_test_would_be_noticed():
    """Negative control."""
    [(file, name)] = promised_tests("| a promise | `tests/docs/test_docs.py` `test_that_is_not_there` |")
    assert name not in names_of_tests(ROOT / file)


def promised_tests(text: str) -> list[tuple[str, str]]:
    """(file, test) for each test that a table names; a file stands before the tests that are in it."""
    found: list[tuple[str, str]] = []
    file = ""
    for name in re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", text):
        if name.startswith("tests/"):
            file = name
        else:
            found.append((file, name))
    return found


def names_of_tests(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
