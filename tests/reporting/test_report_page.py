"""The report of a run tells what its directory holds; nothing in it runs, is fetched or leaves its place."""

import base64
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.hostile_texts import PAYLOADS
from tests.reported import Page, change_json, copied, page_of, train_small_run

from finetooth.config.describe import origins_of
from finetooth.reporting import rendering
from finetooth.reporting.data_card import read_data_card
from finetooth.reporting.report_page import report_page
from finetooth.reporting.run_reading import read_run

# fmt: off
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "footer", "div",
    "span", "h1", "h2", "h3", "p", "a", "b", "i", "ul", "li", "dl", "dt", "dd", "table", "tr", "th", "td",
    "figure", "figcaption", "pre", "code", "del", "ins", "label", "input", "wbr", "svg", "g", "path", "rect",
    "line", "circle", "text",
}
# fmt: on
FINDINGS = [
    "masks",
    "stop token",
    "truncation",
    "duplicates",
    "leakage",
    "overfit",
    "spikes",
    "reload parity",
]
KEPT = ("kept", "dropped", "refused", "train", "dev", "proved", None)
SECTIONS = ["curves", "trained", "data", "answers", "evaluations", "settings", "again", "use"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FINETOOTH_CACHE", str(folder / "cache"))
        return train_small_run(folder)


def test_a_finished_run_has_a_report_with_every_section(run: Path, monkeypatch: pytest.MonkeyPatch):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert [a["id"] for tag, a in page.elements if tag == "section"] == SECTIONS
    assert [text for place, text in page.texts if place[-1:] == ("div",) and text in FINDINGS] == FINDINGS
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    monkeypatch.chdir(run.parent)
    assert page.source == page_of(Path("run")).source, "report.html is what the directory tells"


def test_the_policy_of_the_page_allows_its_style_and_nothing_else(run: Path):
    page = page_of(run)
    [policy] = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    style = "".join(text for place, text in page.texts if place[-1:] == ("style",))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    attributes = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")}
    assert all((a.get("href") or "#").startswith("#") for _, a in page.elements)
    assert "url(" not in style
    assert "@import" not in style


def test_every_curve_is_drawn_against_steps_and_tokens(run: Path):
    page = page_of(run)
    paths = [attributes["d"] or "" for tag, attributes in page.elements if tag == "path"]
    num_steps = json.loads((run / "summary.json").read_text())["num_steps"]
    assert len([path for path in paths if path.count("L") == num_steps - 1]) == 2 * 5
    titles = [text for place, text in page.texts if "text" in place]
    for name in ("loss", "learning rate", "gradient norm", "tokens per second", "peak memory, MB"):
        assert titles.count(name) + sum(text.startswith(f"{name},") for text in titles) == 2
    assert f"step {num_steps}" in titles
    assert len(page.with_class("g", "zone")) == 2 * num_steps


def test_samples_are_coloured_by_their_loss_weight(run: Path):
    card = read_data_card(run)
    assert card is not None
    shown = [document for record in card.records for document in record.documents]
    targets = [s.text for d in shown for s in [*d.beginning, *d.end] if s.loss_weight == 1]
    assert len(targets) == 5
    page = page_of(run)
    coloured = [a for tag, a in page.elements if tag == "b" and a.get("class") == "t"]
    assert len(coloured) == len(targets)
    context = [s for d in shown for s in [*d.beginning, *d.end] if s.loss_weight == 0]
    assert len([a for tag, a in page.elements if tag == "b" and "title" in a and "class" not in a]) == len(
        context
    )
    assert {"dropped", "refused", "shortest", "longest"} <= {kind for r in card.records for kind in r.kinds}
    assert len(page.with_class("svg", "row")) == len(card.step.rows)


def test_a_weighted_target_has_a_colour_of_its_own(run: Path, tmp_path: Path):
    run = copied(run, tmp_path)

    def weigh(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: 0.5 if k == "loss_weight" and v == 1 else weigh(v) for k, v in value.items()}
        return [weigh(each) for each in value] if isinstance(value, list) else value

    change_json(run / "data.json", weigh)
    page = page_of(run)
    assert len(page.with_class("b", "w")) == 5
    assert page.with_class("b", "t") == []
    assert len(page.with_class("rect", "w")) == 3


def test_the_figures_are_those_of_the_files(run: Path):
    page, text = page_of(run), page_of(run).text
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    for name in ("train_loss", "dev_loss", "dev_perplexity"):
        assert f"{last[name]:.4g}" in text
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['num_tokens']:,} tokens · {summary['num_targets']:,} targets" in text
    environment = json.loads((run / "environment.json").read_text())
    assert f"torch {environment['versions']['torch']}" in text
    assert json.loads((run / "schedule.json").read_text())["fingerprint"] in text
    for entry in json.loads((run / "final" / "MANIFEST.json").read_text())["files"].values():
        assert entry["sha256"] in text
    assert "duplicate of an earlier record" in text
    assert "longer than data.max_length (64 tokens)" in text
    assert len(page.with_class("tr", "best")) == 1


def test_every_setting_stands_with_the_place_where_it_was_set(run: Path):
    page = page_of(run)
    origins = origins_of((run / "config.yaml").read_text())
    cells = [text for place, text in page.texts if place[-1:] == ("td",)]
    for origin in set(origins.values()):
        assert cells.count(Path(origin).name) >= list(origins.values()).count(origin)
    assert "default" in origins.values()


def test_a_run_that_has_left_little_says_what_is_not_known(run: Path, tmp_path: Path):
    run = copied(run, tmp_path)
    for name in (
        "data.json",
        "ledger.jsonl",
        "metrics.jsonl",
        "summary.json",
        "environment.json",
        "schedule.json",
    ):
        (run / name).unlink()
    (run / "final" / "MANIFEST.json").unlink()
    page = page_of(run)
    text = page.text
    assert [a["id"] for tag, a in page.elements if tag == "section"] == SECTIONS
    assert "cut off" in text
    assert "No update was logged, so there is no curve." in text
    assert "There is no data.json in the run directory" in text
    assert "There is no ledger in the run directory." in text
    assert "Nothing was evaluated (evaluation.every)." in text
    assert len(page.with_class("li", "unknown")) == 8
    assert page.with_class("li", "good") == []


@pytest.fixture(scope="module")
def plain_structure(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, tuple[str, ...]]]:
    plain = copied(run, tmp_path_factory.mktemp("plain"))
    fill_texts(plain, "plain")
    return structure(page_of(plain))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_run_becomes_a_part_of_the_page(
    run: Path, tmp_path: Path, payload: str, plain_structure: list[tuple[str, tuple[str, ...]]]
):
    hostile = copied(run, tmp_path)
    fill_texts(hostile, payload)
    page = page_of(hostile)
    assert structure(page) == plain_structure
    assert all(c.isprintable() or c in "\n\t" for c in page.source)
    assert len(page.source) > 30_000


def test_texts_that_are_not_escaped_would_be_noticed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control."""
    unsafe = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **o: unsafe(**{**o, "autoescape": False}))
    monkeypatch.setattr(rendering, "environment_of", rendering.environment_of.__wrapped__)
    run = copied(run, tmp_path)
    fill_texts(run, "<x-y>z</x-y>")
    assert report_page(read_run(str(run))).count("<x-y>") > 50


def structure(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    """Elements with the names of their attributes; those that divide words of paths and answers apart."""
    return [(tag, tuple(names)) for tag, names in page.elements if tag not in ("wbr", "del", "ins")]


def fill_texts(run: Path, text: str) -> None:
    """Puts a text into every place of a run directory that holds text, names within it included."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: v if k in ("state", "split", "mask") and v in KEPT else filled(v) for k, v in value.items()
            }
        if isinstance(value, list):
            return [filled(each) for each in value]
        return text if isinstance(value, str) else value

    for path in run.rglob("*.json*"):
        if path.parent.name in ("run", "samples"):
            change_json(path, filled)
    config, told = (run / "config.yaml").read_text(), json.dumps(text.replace("\0", ""))
    for name in ("path", "train", "system", "output_dir", "cache_dir"):
        lines = [
            f"{line.partition(':')[0]}: {told}  # {told}" if line.strip().startswith(f"{name}:") else line
            for line in config.splitlines()
        ]
        config = "\n".join(lines) + "\n"
    (run / "config.yaml").write_text(config)
    summary = json.loads((run / "summary.json").read_text()) | {"state": text, "problems": [text]}
    (run / "summary.json").write_text(json.dumps(summary))
    documents = [{"origin": text, "loss": 9.5}]
    notes = [
        {"step": 2, "spike": {"usual_loss": 2.5, "documents": documents}},
        {"step": 2, "skipped": [text]},
        {"step": 3, "changes": {text: {"before": text, "now": text}}},
        {"step": 3, "train_loss": 1.0, text: 2.0, "dev_loss": 1.0, "by source": {text: 3.0}},
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(note) + "\n" for note in notes)
    verdicts = [{"name": text, "state": "failed", "what": text}]
    verified = {"to": text, "dtype": text, "passed": False, "verdicts": verdicts}
    (run / "verified.json").write_text(json.dumps(verified))
    manifest = {"files": {text: {"sha256": text}}}
    (run / "final" / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_hundred_thousand_steps_are_thinned_and_no_spike_is_lost(run: Path, tmp_path: Path):
    run = copied(run, tmp_path)
    write_metrics(run / "metrics.jsonl", num_steps=100_000, peak_at=54_321)
    page = page_of(run)
    assert 100_000 < len(page.source.encode()) < 1_000_000
    assert "loss, peaks to 77" in page.text
    assert "steps 54,251 to 54,500" in page.text
    assert len(page.with_class("g", "zone")) == 2 * 400


def write_metrics(path: Path, *, num_steps: int, peak_at: int) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for step in range(1, num_steps + 1):
            line = {
                "step": step,
                "loss": 77.0 if step == peak_at else 2 + draw.random(),
                "learning_rate": 1e-5,
            }
            line |= {"grad_norm": draw.random(), "num_targets": 100, "num_tokens": 200, "seconds": 0.5}
            file.write(json.dumps(line | {"peak_memory_mb": 812.5}) + "\n")
            if step % 1000 == 0:
                file.write(json.dumps({"step": step, "train_loss": 2.5, "dev_loss": 2.6}) + "\n")


def test_a_page_of_very_long_texts_stays_small_and_counts_what_is_missing(run: Path, tmp_path: Path):
    run = copied(run, tmp_path)
    write_metrics(run / "metrics.jsonl", num_steps=2000, peak_at=1)
    fill_texts(run, "\u202e<&> " * 2_000)
    page = page_of(run)
    assert 200_000 < len(page.source.encode()) <= 2_000_000
    assert " more characters)" in page.text
