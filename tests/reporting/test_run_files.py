"""Whatever stands in the files of a run directory, it gives a report or an error in a sentence."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reported import command, copied, train_small_run

from finetooth.base.errors import FinetoothError
from finetooth.reporting.comparison_page import comparison_page
from finetooth.reporting.report_page import report_page
from finetooth.reporting.run_reading import read_run

FILES = (
    *("summary.json", "environment.json", "schedule.json", "verified.json", "data.json", "metrics.jsonl"),
    *("ledger.jsonl", "samples/eval.jsonl", "samples/step-000000.jsonl", "final/MANIFEST.json"),
)
NOTES = [
    {"step": 2, "spike": {"usual_loss": 2.5, "documents": [{"origin": "a.jsonl:1", "loss": 9.5}]}},
    {"step": 2, "skipped": ["a loss is not finite"]},
    {"step": 3, "changes": {"training.seed": {"before": 1, "now": 2}}},
]
VERIFIED = {
    "to": "folder",
    "dtype": "fp32",
    "passed": True,
    "verdicts": [{"name": "logits", "state": "passed", "what": "0"}],
}
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 7, 2**70, -0.5, 1e300, float("nan"), float("inf")]),
    st.sampled_from(["", "text", "7", "\ud800", "\x1b[31m<b>"]),
    st.sampled_from([[], {}, [1], ["a"], [[]], [{}], {"a": 1}, {"": {}}, {"a": ["b"]}]),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every file is there, with notes of each kind."""
    folder = tmp_path_factory.mktemp("edited")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FINETOOTH_CACHE", str(folder / "cache"))
        run = train_small_run(folder)
        assert command("eval", "run").exit_code == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(note) + "\n" for note in NOTES)
    (run / "verified.json").write_text(json.dumps(VERIFIED))
    return run


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a value, the value itself included."""
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    changed = copy.copy(value)
    changed[place[0]] = replaced(value[place[0]], place[1:], new)
    return changed


def told_or_shown(run: Path) -> str:
    """The error of a report, or nothing where there is a page, of one run and of two."""
    try:
        report_page(read_run(str(run)))
        comparison_page([read_run(str(run)), read_run(str(run))])
    except FinetoothError as error:
        [told] = error.problems
        return told
    return ""


@settings(max_examples=100)
@given(data=st.data())
def test_any_value_in_any_place_is_shown_or_told(run: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(FILES))
    path = run / name
    original = path.read_bytes()
    lines = original.splitlines() if name.endswith(".jsonl") else [original]
    number = data.draw(st.integers(0, len(lines) - 1))
    content = json.loads(lines[number])
    place = data.draw(st.sampled_from(list(places(content))))
    lines[number] = json.dumps(replaced(content, place, data.draw(WRONG))).encode()
    path.write_bytes(b"\n".join([*lines, b""]))
    try:
        told = told_or_shown(run)
    finally:
        path.write_bytes(original)
    assert told == "" or (told.startswith(str(path)) and told.count("; ") >= 1), told


@pytest.mark.parametrize(
    ("name", "place", "new", "told"),
    [
        (
            "summary.json",
            ("num_steps",),
            "ten",
            ": not what a run writes: Expected `int`, got `str` - at `$.num_steps`; "
            "restore it, or name another run",
        ),
        (
            "environment.json",
            ("versions",),
            ["torch"],
            ": not what a run writes: Expected `object`, got `array` - at `$.versions`; "
            "restore it, or name another run",
        ),
        (
            "final/MANIFEST.json",
            ("files",),
            "\ud800",
            ": not what a run writes: a text holds half a surrogate pair; restore it, or name another run",
        ),
        (
            "metrics.jsonl",
            ("loss",),
            "2.5",
            ":2: no line that a run writes: Expected `float | null`, got `str` - at `$.loss`; "
            "remove the line, or name another run",
        ),
    ],
)
def test_what_is_of_another_type_is_told_with_its_place(
    run: Path, tmp_path: Path, name: str, place: tuple[str, ...], new: Any, told: str
):
    run = copied(run, tmp_path)
    path = run / name
    if name.endswith("l"):
        lines = path.read_text().splitlines()
        lines[1] = json.dumps(replaced(json.loads(lines[1]), place, new))
        path.write_text("\n".join([*lines, ""]))
    else:
        path.write_text(json.dumps(replaced(json.loads(path.read_text()), place, new)))
    result = command("report", str(run))
    assert (result.exit_code, result.stderr) == (1, f"{path}{told}\n")


def test_a_file_nested_without_end_is_told(run: Path, tmp_path: Path):
    run = copied(run, tmp_path)
    (run / "summary.json").write_text("[" * 100_000)
    told = f"{run / 'summary.json'}: not what a run writes; restore it, or name another run"
    assert told_or_shown(run) == told


def test_a_value_that_is_neither_shown_nor_told_would_be_noticed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negative control: without the check of types, a text in the place of a number breaks the page."""
    monkeypatch.setattr("finetooth.evaluation.run_files.require_kind", lambda content, kind: None)
    run = copied(run, tmp_path)
    summary = json.loads((run / "summary.json").read_text()) | {"num_steps": "ten"}
    (run / "summary.json").write_text(json.dumps(summary))
    with pytest.raises((TypeError, ValueError)):
        told_or_shown(run)
