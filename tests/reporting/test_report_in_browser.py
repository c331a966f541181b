"""Reports as a browser shows them: nothing is asked for, nothing goes wrong, curves and colours are there."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.browser import Browser, needs_browser, running_browser
from tests.hostile_texts import PAYLOADS
from tests.reported import command, copied, train_small_run
from tests.reporting.test_report_page import fill_texts, write_metrics

pytestmark = needs_browser

DRAWN = """[...document.querySelectorAll('.plot path')].filter(
    path => path.getTotalLength() > 100 && path.getBoundingClientRect().width > 100).length"""
COLOURS = """[...new Set([...document.querySelectorAll('pre b.t, pre b.w, pre b:not([class])')].map(
    part => getComputedStyle(part).backgroundColor))].length"""
TOLD = """[...document.querySelectorAll('.by-step .zone text')].filter(
    text => getComputedStyle(text).visibility == 'visible').map(text => text.textContent)"""
WIDER_THAN_THE_WINDOW = "document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browsed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FINETOOTH_CACHE", str(folder / "cache"))
        return train_small_run(folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report as it was written, one of a long run, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    long = copied(run, folder)
    write_metrics(long / "metrics.jsonl", num_steps=5000, peak_at=1234)
    compared = folder / "comparison.html"
    assert command("report", str(long)).exit_code == 0
    assert command("report", str(run), str(long), "--out", str(compared)).exit_code == 0
    return {"report": run / "report.html", "long": long / "report.html", "comparison": compared}


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["report", "long", "comparison"])
def test_a_page_draws_its_curves_and_asks_for_nothing(
    browser: Browser, pages: dict[str, Path], name: str, width: int, is_dark: bool
):
    browser.open(pages[name], width=width, is_dark=is_dark)
    assert browser.errors == []
    assert browser.requests == [pages[name].as_uri()]
    assert browser.value(DRAWN) >= 5
    assert not browser.value(WIDER_THAN_THE_WINDOW)
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if is_dark else "rgb(251, 251, 249)")


def test_samples_are_coloured(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["report"])
    assert browser.value(COLOURS) == 2
    assert browser.value("document.querySelectorAll('.row rect.t').length") == 3


def test_pointing_at_a_curve_tells_its_values(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["report"])
    assert browser.value(TOLD) == []
    browser.value("document.querySelector('.by-step').scrollIntoView()")
    x, y, width, height = browser.value(
        "(({x, y, width, height}) => [x, y, width, height])"
        "(document.querySelectorAll('.by-step .plot')[1].getBoundingClientRect())"
    )
    browser.point_at(x + 0.5 * width, y + 0.5 * height)
    place, *values = browser.value(TOLD)
    assert place.startswith("step ")
    assert len(values) == 5
    assert all(float(value.replace(",", "")) > 0 for value in values)


def test_the_axis_can_be_changed(browser: Browser, pages: dict[str, Path]):
    is_shown = "getComputedStyle(document.querySelector('.curves.by-tokens')).display != 'none'"
    browser.open(pages["report"])
    assert not browser.value(is_shown)
    browser.value("document.querySelector('#tokens').click()")
    assert browser.value(is_shown)
    assert browser.value(DRAWN) >= 5


def test_hostile_texts_become_no_nodes(browser: Browser, run: Path, tmp_path: Path):
    counts: list[int] = []
    together = " ".join(PAYLOADS)
    for name, text in (("plain", "x" * len(together)), ("hostile", together)):
        filled = copied(run, tmp_path / name)
        fill_texts(filled, text)
        assert command("report", str(filled)).exit_code == 0
        browser.open(filled / "report.html")
        assert browser.errors == []
        assert len(browser.requests) == 1
        assert browser.value("typeof window.hit") == "undefined"
        counts.append(browser.value("document.querySelectorAll(':not(wbr, del, ins)').length"))
    assert counts[0] == counts[1] > 300


def test_it_can_be_printed(browser: Browser, pages: dict[str, Path], tmp_path: Path):
    browser.open(pages["report"], width=760, is_dark=True, media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not browser.value(WIDER_THAN_THE_WINDOW)
    browser.printed(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_of_inspect_is_styled_and_asks_for_nothing(
    browser: Browser, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(run.parent)
    page = tmp_path / "inspect.html"
    assert command("inspect", "run.yaml", "--html", str(page)).exit_code == 0
    browser.open(page, is_dark=True)
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert browser.value("document.querySelectorAll('.bars rect').length") > 1
    assert browser.value(COLOURS) == 2


def test_what_a_page_must_not_do_would_be_noticed(browser: Browser, pages: dict[str, Path], tmp_path: Path):
    """Negative control: a picture that is fetched, a script that fails, and one that the policy refuses."""
    page = tmp_path / "page.html"
    page.write_text("<img src='picture.png'><script>window.hit = 1; missing()</script>")
    browser.open(page)
    assert len(browser.requests) == 2
    assert any("missing is not defined" in error for error in browser.errors)
    assert browser.value("window.hit") == 1
    shutil.copyfile(pages["report"], page)
    page.write_text(
        page.read_text(encoding="utf-8").replace("<main>", "<main><script>window.hit = 1</script>")
    )
    browser.open(page)
    assert any("Content Security Policy" in error for error in browser.errors)
    assert browser.value("typeof window.hit") == "undefined"
