"""The benchmark of plans: predictions stand beside the runs that follow, and one far off is told."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
RUN = {
    "seconds": 10.0,
    "planned_seconds": 11.0,
    "memory_mb": 500.0,
    "planned_memory_mb": 520.0,
    "planning_seconds": 9.0,
    "rough_least_seconds": 3.0,
    "rough_most_seconds": 12.0,
}


@pytest.fixture(scope="module")
def bench() -> Any:
    """Imports a module of bench/ by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module


@pytest.fixture
def plans(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = bench("plan_accuracy")
    monkeypatch.setattr(module, "_make_work", lambda *_: None)
    return module


def test_near_predictions_pass_and_all_figures_are_kept(
    plans: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(plans, "compare", lambda *_, **__: RUN)
    plans.main(["--sizes", "tiny", "3M", "--repeats", "2", "--out", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "+10.0%" in printed
    assert "+4.0%" in printed
    assert json.loads((tmp_path / "figures.json").read_text()) == {"tiny": [RUN, RUN], "3M": [RUN, RUN]}


@pytest.mark.parametrize("far", [{"planned_seconds": 8.4}, {"planned_memory_mb": 560.0}])
def test_a_prediction_far_off_is_told(plans: Any, monkeypatch: pytest.MonkeyPatch, far: dict[str, float]):
    monkeypatch.setattr(plans, "compare", lambda *_, **__: {**RUN, **far})
    with pytest.raises(SystemExit) as caught:
        plans.main(["--sizes", "tiny"])
    assert str(caught.value) == "predicted too far off: tiny"


@pytest.mark.slow
def test_a_run_follows_its_plan(bench: Any, tmp_path: Path):
    """Memory is held to its bound; time only where nothing else runs on the machine."""
    work = bench("work")
    made = work.make_work(
        tmp_path / "work",
        "tiny",
        work.made_records(60, median=30, longest=60),
        num_steps=6,
        documents_per_step=4,
        max_length=256,
        limit=300,
    )
    plans = bench("plan_accuracy")
    figures = plans.compare(made, tmp_path / "run", limit=300)
    assert not (tmp_path / "run").exists()
    assert figures["planned_memory_mb"] == pytest.approx(figures["memory_mb"], rel=plans.MEMORY_WITHIN)
    assert 0 < figures["planned_step_seconds"] < figures["planned_seconds"]
