"""A run directory read back: everything that a report tells, also of a run that was stopped or failed."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from finetooth.base.errors import ConfigError, problem
from finetooth.config.describe import origins_of
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Counts, count_ledger, count_masks
from finetooth.evaluation.run_files import (
    Environment,
    Manifest,
    Measured,
    ScheduleFile,
    Summary,
    Verified,
    read_object,
    undamaged,
)
from finetooth.reporting.course import Course, read_course
from finetooth.reporting.data_card import DataCard, read_data_card
from finetooth.reporting.serving import Form
from finetooth.training.run_lock import who_writes

_OF_STEP = re.compile(r"step-(\d{1,12})")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy wrote to one prompt, as a line of samples/ holds it.

    extracted, num_tokens, loops, loss: what `finetooth eval` tells besides, of newer runs
    """

    origin: str
    prompt: str
    generated: str
    reference: str
    stopped: bool
    exact_match: bool
    extracted: str | None = None
    num_tokens: int | None = None
    loops: bool = False
    loss: Measured = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as far as its directory tells.

    name:        as it was given
    origins:     by dotted key, where each setting was set
    environment, schedule, summary, verified: the JSON files of these names; empty where there is none, as
                 is the summary of a run that is about to go on
    counts:      by split, what the ledger says
    masks:       of how many kept records the targets come from where
    data:        None where there is no data.json
    answers:     by step, what samples/ holds of the first and the last evaluation up to that of final/
    evaluated:   the answers that `finetooth eval` wrote last
    state:       finished, stopped or failed; "running" while a process writes into the directory; "cut off"
                 where a run ended without a word, perhaps after it went on with one that had been stopped
    form:        how final/ holds the policy; None where there is none
    hashes:      of each file of final/, its SHA-256
    """

    name: str
    folder: Path
    config: SFTConfig
    origins: Mapping[str, str]
    environment: Mapping[str, Any]
    schedule: Mapping[str, Any]
    summary: Mapping[str, Any]
    verified: Mapping[str, Any]
    counts: Mapping[str, Counts]
    masks: Mapping[str, int]
    course: Course
    data: DataCard | None
    answers: Mapping[int, Sequence[Answer]]
    evaluated: Sequence[Answer]
    state: str
    form: Form | None
    hashes: Mapping[str, str]

    @property
    def evaluations_of_policy(self) -> Sequence[Mapping[str, Any]]:
        """Those up to the step whose policy `final/` holds; of a run that has not ended, all."""
        last = self.summary.get("final_step")
        return [line for line in self.course.evaluations if last is None or line["step"] <= last]


def read_run(name: str, *, place: str = "command line") -> Run:
    """Reads a run directory.

    Raises ConfigError where there is none, and FinetoothError for a file that a run does not write so.
    """
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        fact, remedy = f"{name} is no run directory", "name a folder that finetooth train wrote to"
        raise ConfigError(problem(place, fact, remedy))
    ledger = folder / "ledger.jsonl"
    with undamaged(ledger):
        counts = count_ledger(ledger) if ledger.is_file() else {}
        masks = count_masks(ledger) if ledger.is_file() else {}
    summary = read_object(folder / "summary.json", Summary)
    state = _state(folder, summary)
    return Run(
        name=name,
        folder=folder,
        config=load_config(folder / "config.yaml"),
        origins=origins_of((folder / "config.yaml").read_text(encoding="utf-8")),
        environment=read_object(folder / "environment.json", Environment),
        schedule=read_object(folder / "schedule.json", ScheduleFile),
        summary=summary if state == summary.get("state") else {},
        verified=read_object(folder / "verified.json", Verified),
        counts=counts,
        masks=masks,
        course=read_course(folder / "metrics.jsonl"),
        data=read_data_card(folder),
        answers=_answers(folder / "samples", until=summary.get("final_step", math.inf)),
        evaluated=_lines(folder / "samples" / "eval.jsonl"),
        state=state,
        form=_form(folder / "final"),
        hashes=_hashes(folder / "final" / "MANIFEST.json"),
    )


def _state(folder: Path, summary: Mapping[str, Any]) -> str:
    """How a run ended, as its summary says, which is gone once it goes on."""
    writer = who_writes(folder)
    if writer != "nobody":
        return "running" if writer == "a process here" else "running or cut off"
    return summary.get("state", "cut off")


def _answers(folder: Path, *, until: float) -> dict[int, list[Answer]]:
    """Those of the first and the last evaluation through a step."""
    named = ((_OF_STEP.fullmatch(path.stem), path) for path in sorted(folder.glob("step-*.jsonl")))
    paths = {int(match[1]): path for match, path in named if match is not None}
    steps = {step: path for step, path in paths.items() if step <= until}
    ends = sorted({min(steps), max(steps)}) if steps else []
    return {step: _lines(steps[step]) for step in ends}


def _lines(path: Path) -> list[Answer]:
    if not path.is_file():
        return []
    with undamaged(path):
        return [msgspec.json.decode(line, type=Answer) for line in path.read_bytes().splitlines()]


def _form(final: Path) -> Form | None:
    if not final.is_dir():
        return None
    if (final / "adapter_config.json").is_file():
        return "adapter"
    return "pt" if (final / "model.pt").is_file() else "folder"


def _hashes(path: Path) -> dict[str, str]:
    files = read_object(path, Manifest).get("files", {})
    return {name: entry["sha256"] for name, entry in files.items()}
