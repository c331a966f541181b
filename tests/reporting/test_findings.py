"""Each question about a run is answered by what its directory holds, or said not to be known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetooth.config.schema import DataConfig, LoggingConfig, ModelConfig, SFTConfig
from finetooth.data.ledger import Counts
from finetooth.reporting.course import Course
from finetooth.reporting.data_card import DataCard, Endings, ShownStep
from finetooth.reporting.findings import Finding, findings_of
from finetooth.reporting.run_reading import Run

CARD = DataCard(
    tokenizer="base",
    summary={},
    remarks=[],
    sources=[],
    endings=Endings(10, 10, ["<|im_end|>"]),
    records=[],
    step=ShownStep(1, 1, 1, 1, 1, 0, []),
)
NOTHING = Course(
    steps=np.array([], np.int64),
    tokens=np.array([]),
    columns={},
    num_targets=np.array([]),
    seconds=np.array([]),
    is_complete=True,
    evaluations=[],
    notes=[],
)


def run_of(**parts: Any) -> Run:
    data = {"on_near_duplicate": "report", **parts.pop("settings", {})}
    config = SFTConfig(
        model=ModelConfig(path="base"), data=DataConfig(train="train.jsonl", **data), output_dir="run"
    )
    config = replace(config, logging=LoggingConfig(spikes=parts.pop("spikes", True)))
    course = replace(NOTHING, **{"steps": np.array([1]), **parts.pop("course", {})})
    counts = {
        split: Counts(reasons=reasons) for split, reasons in parts.pop("reasons", {"train": {}}).items()
    }
    names = ("origins", "environment", "schedule", "summary", "verified", "answers", "hashes")
    card = parts.pop("data", CARD)
    given = {**{key: {} for key in names}, "masks": {"proved": 7}, "form": "folder", **parts}
    given = {"evaluated": [], "state": "finished", **given}
    return Run(
        name="run", folder=Path("run"), config=config, counts=counts, course=course, data=card, **given
    )


def finding(name: str, **parts: Any) -> Finding:
    [found] = [found for found in findings_of(run_of(**parts)) if found.name == name]
    return found


def evaluated(*dev_losses: float, **figures: float) -> dict[str, Any]:
    lines = [
        {"step": place, "train_loss": 1.0, "dev_loss": loss} | figures
        for place, loss in enumerate(dev_losses)
    ]
    return {"evaluations": lines}


def dropped(reason: str, number: int = 3) -> dict[str, dict[str, int]]:
    return {"train": {reason: number}, "dev": {}}


LEAK = "leak: the same prompt as a record of dev"
LONG = "longer than data.max_length (64 tokens)"
VERDICT = {"name": "logits", "state": "passed", "what": "largest difference"}
VERIFIED = {"to": "folder", "dtype": "bf16", "passed": True, "verdicts": [VERDICT]}


@pytest.mark.parametrize(
    ("name", "parts", "state", "fact"),
    [
        ("masks", {}, "good", "all proved"),
        ("masks", {"masks": {"proved": 7, "as given": 1200}}, "look", "1,200 as given"),
        ("masks", {"masks": {}}, "unknown", "not known"),
        ("stop token", {}, "good", "always a target"),
        ("stop token", {"course": evaluated(1.0, stop_rate=1.0)}, "good", "100% of answers stop"),
        ("stop token", {"course": evaluated(1.0, stop_rate=0.5)}, "look", "50% of answers stop"),
        ("stop token", {"data": replace(CARD, endings=Endings(10, 8, ["x"]))}, "bad", "missing in 2"),
        ("stop token", {"data": replace(CARD, endings=Endings(0, 0, ["x"]))}, "unknown", "none asked for"),
        ("stop token", {"environment": {"template": {"untrained_tokens": ["x"]}}}, "look", "new to the base"),
        ("stop token", {"data": None}, "unknown", "not known"),
        ("truncation", {}, "good", "none"),
        ("truncation", {"reasons": dropped(LONG)}, "look", "3 too long"),
        ("truncation", {"data": replace(CARD, summary={"num_divided": 4})}, "look", "4 shortened"),
        ("truncation", {"data": replace(CARD, summary={"num_left_out": 5})}, "look", "5 shortened"),
        ("truncation", {"reasons": {}}, "unknown", "not known"),
        ("duplicates", {}, "good", "none"),
        ("duplicates", {"reasons": dropped("duplicate of an earlier record")}, "good", "3 dropped"),
        ("duplicates", {"reasons": dropped("almost equal to an earlier record")}, "good", "3 dropped"),
        (
            "duplicates",
            {"data": replace(CARD, summary={"num_near_duplicates": 2})},
            "look",
            "2 near ones kept",
        ),
        ("duplicates", {"settings": {"on_duplicate": "keep"}}, "unknown", "not looked for"),
        ("duplicates", {"data": None}, "unknown", "not known"),
        ("leakage", {}, "unknown", "no dev records"),
        ("leakage", {"reasons": {"train": {}, "dev": {}}}, "good", "none"),
        ("leakage", {"reasons": dropped(LEAK)}, "good", "3 dropped"),
        ("leakage", {"reasons": dropped(LEAK), "settings": {"on_leak": "keep"}}, "unknown", "not looked for"),
        ("overfit", {}, "unknown", "not known"),
        ("overfit", {"course": evaluated(3.0, 2.0)}, "unknown", "one measurement"),
        ("overfit", {"course": evaluated(3.0, 2.0, 2.01)}, "good", "not seen"),
        ("overfit", {"course": evaluated(1.0, 2.0, 2.2)}, "look", "+10.0% since step 1"),
        (
            "overfit",
            {"course": evaluated(1.0, 2.0, 2.2), "summary": {"final_step": 1}},
            "good",
            "not in final/",
        ),
        ("spikes", {}, "good", "none"),
        ("spikes", {"course": {"notes": [{"step": 5, "spike": {}}]}}, "look", "1"),
        ("spikes", {"course": {"notes": [{"step": 5, "skipped": ["x"]}]}}, "bad", "1 step skipped"),
        ("spikes", {"spikes": False}, "unknown", "not looked for"),
        ("spikes", {"course": {"steps": np.array([], np.int64)}}, "unknown", "not known"),
        ("reload parity", {}, "unknown", "not measured"),
        ("reload parity", {"verified": VERIFIED}, "good", "holds (folder, bf16)"),
        ("reload parity", {"verified": VERIFIED | {"passed": False}}, "bad", "fails (folder, bf16)"),
    ],
)
def test_a_question_is_answered(name: str, parts: dict[str, Any], state: str, fact: str):
    found = finding(name, **parts)
    assert (found.state, found.fact) == (state, fact)
    assert found.told
