"""A page shows the samples whole, and nothing in it can run, be fetched or leave its place."""

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pytest
from tests.inspected import (
    RECORDS,
    command,
    enter_run,
    expected_documents,
    inspected,
    turns,
    write_records,
    write_settings,
)

from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.reporting import page as module


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run."""
    return enter_run(tmp_path, monkeypatch)


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the text of each document."""

    def __init__(self, path: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.documents: list[str] = []
        self._open: list[str] = []
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "pre":
            self.documents.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "pre" in self._open:
            self.documents[-1] += data


# fmt: off
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "div", "span",
    "h1", "h2", "dl", "dt", "dd", "table", "tr", "th", "td", "figure", "figcaption", "ul", "li", "p", "pre",
    "b", "label", "input", "br", "wbr", "svg", "rect",
}
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "data-t", "id", "type", "role", "scope",
    "aria-label", "width", "height", "viewbox", "preserveaspectratio", "x", "y",
}
# fmt: on


def test_a_page_holds_the_samples_and_nothing_that_could_run_or_be_fetched():
    assert command("--html", "page.html").stdout.endswith("page: page.html\n")
    page = Page("page.html")
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    assert {name for _, attributes in page.elements for name in attributes} <= ATTRIBUTES
    [policy] = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    text = Path("page.html").read_text()
    digest = hashlib.sha256(text.partition("<style>")[2].partition("</style>")[0].encode()).digest()
    style = f"'sha256-{base64.b64encode(digest).decode()}'"
    assert policy == f"default-src 'none'; style-src {style}; base-uri 'none'; form-action 'none'"
    assert "url(" not in text
    assert "http" not in text.replace("http-equiv", "")
    samples = inspected("--html", "page.html")["samples"]
    texts = ["".join(piece for piece, _ in d["pieces"]) for sample in samples for d in sample["documents"]]
    assert [text.replace("\n", "↵\n") for text in texts] == [d for d in page.documents if "↵" in d]
    assert {kind for sample in samples for kind in sample["kinds"]} >= {"refused", "dropped", "with tools"}


def test_every_token_of_a_page_tells_its_id_and_weight():
    command("--record", "1", "--html", "page.html")
    told = [attributes["data-t"] for tag, attributes in Page("page.html").elements if tag == "b"]
    [(token_ids, loss_weights)] = expected_documents(RECORDS[0])
    assert [text.split(" · ")[:3] for text in told if text] == [
        [f"token {place}", f"id {token_id}", f"loss weight {weight:g}"]
        for place, (token_id, weight) in enumerate(zip(token_ids, loss_weights, strict=True))
    ]


HOSTILE = (
    "<script>alert(1)</script> </pre></b> \" onmouseover='x' {{ 7*7 }} {% raw %} &lt; <!-- --> ]]> "
    "\x1b[31m \x9b31m \u202e \u2066 \u200b \ufeff \U000e0100 \t \x00 ⟦x⟧ ↵"
)


def test_nothing_of_the_data_escapes_into_the_page(folder: Path):
    name = "<img src=x>\u202e.jsonl"
    write_records(folder, [{"messages": turns(HOSTILE, HOSTILE)}, {"messages": turns(HOSTILE, "")}, HOSTILE])
    (folder / "train.jsonl").rename(folder / name)
    write_settings(folder, train=name, max_length=2000)
    assert command("training.row_tokens=2000", "--html", "safe.html").exit_code == 0
    page = Page("safe.html")
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "img"} & set(tags)
    assert tags.count("pre") == 3
    assert all(set(attributes) <= {"data-t", "class"} for tag, attributes in page.elements if tag == "b")
    text = Path("safe.html").read_text()
    assert "<script>" not in text
    assert all(character.isprintable() or character == "\n" for character in text)
    shown = HOSTILE.replace("⟦", "\\u27e6").replace("⟧", "\\u27e7").replace("↵", "\\u21b5")
    for character in "\x1b\x9b\u202e\u2066\u200b\ufeff\U000e0100\t\x00":
        shown = shown.replace(character, character.encode("unicode_escape").decode())
    assert page.documents[0].count(shown) == 2


def test_a_page_without_escaping_would_be_broken(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    unsafe = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **o: unsafe(**{**o, "autoescape": False}))
    monkeypatch.setattr(module, "environment_of", module.environment_of.__wrapped__)
    write_records(folder, [RECORDS[0], {"messages": turns(HOSTILE, "")}])
    assert command("--html", "unsafe.html").exit_code == 0
    assert "<script>alert(1)" in Path("unsafe.html").read_text()


def test_a_page_of_long_documents_stays_small_and_says_what_is_missing(folder: Path):
    long = [{"messages": turns(f"What is {n}?", f"\u202e{n} " * 5000)} for n in range(12)]
    write_records(folder, long)
    write_settings(folder, max_length=50_000)
    assert command("training.row_tokens=50000", "--html", "page.html").exit_code == 0
    text = Path("page.html").read_text(encoding="utf-8")
    assert 100_000 < len(text.encode()) <= 2_000_000
    assert " tokens are not shown …" in text


def test_a_count_that_only_one_split_has_is_blank_in_the_other():
    splits = {"train": {"records": "2", "tool messages": "7"}, "dev": {"records": "1"}}
    facts = module.Facts("a", (), splits, lengths=np.array([3, 4]))
    page = module.html_page(facts, [], load_tokenizer("tokenizer"))
    assert '<th scope="row">tool messages</th><td>7</td><td></td>' in page
