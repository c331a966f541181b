"""A finished small run of which a report tells, and what a browser would make of a page."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.small_run import write_run
from typer.testing import CliRunner, Result

from finetooth.cli import app
from finetooth.reporting.report_page import report_page
from finetooth.reporting.run_reading import read_run

VOID = {"meta", "br", "wbr", "input", "link", "img"}


def command(*arguments: str) -> Result:
    settings = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner().invoke(app, list(arguments), prog_name="finetooth", env=settings)


def train_small_run(folder: Path, **sections: dict[str, Any]) -> Path:
    """Trains a run whose records have every fate, in a folder that is the working directory."""
    evaluation = {"every": 4, "exact_match": "plain", "exact_match_records": 4, "max_new_tokens": 4}
    data = {"on_bad_record": "drop", "on_leak": "drop", "on_duplicate": "drop"}
    sections = {"evaluation": evaluation, "data": data} | sections
    run_file = write_run(folder, **sections)
    records = folder / "train.jsonl"
    bad = [{"prompt": "What is 3?", "response": "four four four is 3."}, {"prompt": "What?"}]
    bad.append({"prompt": "What is long?", "response": "four " * 100})
    records.write_text(records.read_text() + "".join(json.dumps(record) + "\n" for record in bad))
    result = command("train", str(run_file))
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def copied(run: Path, folder: Path) -> Path:
    """The run in another folder, where it may be changed."""
    return Path(shutil.copytree(run, folder / "run"))


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Writes what `change` makes of the content of a file of JSON, or of each line of one."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(change(json.loads(line))) + "\n" for line in path.read_text().splitlines()]
        path.write_text("".join(lines))
    else:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))


def page_of(run: Path) -> "Page":
    """The report of a run directory, parsed."""
    return Page(report_page(read_run(str(run))))


class Page(HTMLParser):
    """A page's elements in order, and its text by element."""

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self._open), data))

    @property
    def text(self) -> str:
        """All that can be read."""
        return "".join(text for place, text in self.texts if "style" not in place)

    def with_class(self, tag: str, name: str) -> list[dict[str, str | None]]:
        """The attributes of each element of a tag that has a class."""
        return [a for found, a in self.elements if found == tag and name in (a.get("class") or "").split()]
