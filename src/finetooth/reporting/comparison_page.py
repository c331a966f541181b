"""Several runs side by side as one HTML page: curves over one another, what differs, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth.base.files import write_atomically
from finetooth.reporting.evaluation_view import side_by_side
from finetooth.reporting.findings import Finding, findings_of
from finetooth.reporting.numerals import duration
from finetooth.reporting.plots import figure_of
from finetooth.reporting.rendering import rendered_within
from finetooth.reporting.run_reading import Answer, Run
from finetooth.reporting.settings_view import differing_settings

NAME = "comparison.html"
MOST_RUNS = 8

_PROMPTS_SHOWN = 12
_FACTS = {
    "num_steps": "steps",
    "num_documents": "documents per epoch",
    "num_tokens": "tokens trained",
    "num_targets": "targets trained",
    "peak_memory_mb": "peak memory, MB",
}


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A prompt with the answer of each run, where it was asked, and what the record holds."""

    origin: str
    prompt: str
    reference: str
    answers: list[Answer | None]


def comparison_page(runs: Sequence[Run]) -> str:
    """The whole page, at most 2 MB; runs: 2 to 8."""
    findings = [findings_of(run) for run in runs]
    return rendered_within(
        "comparison.html.jinja",
        runs=runs,
        facts=_facts(runs),
        findings=_by_question(findings),
        figures=[figure_of([run.course for run in runs], axis) for axis in ("step", "tokens")],
        settings=differing_settings(runs),
        evaluations=side_by_side(runs),
        prompts=_prompts(runs),
    )


def write_comparison(runs: Sequence[Run], path: Path) -> Path:
    """Writes the page; returns where it stands."""
    write_atomically(path, comparison_page(runs).encode())
    return path


def _by_question(findings: Sequence[Sequence[Finding]]) -> list[tuple[str, list[Finding]]]:
    return [(answers[0].name, list(answers)) for answers in zip(*findings, strict=True)]


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """How each run went."""
    rows: list[tuple[str, list[str]]] = [("state", [run.state for run in runs])]
    for name, what in _FACTS.items():
        rows.append((what, [_number(run.summary.get(name)) for run in runs]))
    seconds = [run.summary.get("seconds") for run in runs]
    rows.append(("time", ["–" if each is None else duration(each) for each in seconds]))
    rows.append(("device", [str(run.environment.get("device", "–")) for run in runs]))
    return rows


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,}"


def _prompts(runs: Sequence[Run]) -> list[AnsweredPrompt]:
    """Prompts that several runs answered last, those that not all answer alike first."""
    lasts = [run.answers[max(run.answers)] if run.answers else () for run in runs]
    tables = [{(answer.origin, answer.prompt): answer for answer in answers} for answers in lasts]
    keys = {key: None for table in tables for key in table if sum(key in other for other in tables) > 1}
    found: list[AnsweredPrompt] = []
    for key in keys:
        answers = [table.get(key) for table in tables]
        reference = next(answer.reference for answer in answers if answer is not None)
        found.append(AnsweredPrompt(*key, reference, answers))
    return sorted(found, key=_is_alike)[:_PROMPTS_SHOWN]


def _is_alike(prompt: AnsweredPrompt) -> bool:
    return len({answer.exact_match for answer in prompt.answers if answer is not None}) == 1
