"""A run directory read back: everything that a report tells, also of a run that was stopped or failed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from finetooth.base.errors import ConfigError, FinetoothError, problem
from finetooth.config.describe import origins_of
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Counts, count_ledger, count_masks
from finetooth.reporting.course import Course, read_course
from finetooth.reporting.data_card import DataCard, read_data_card
from finetooth.reporting.serving import Form


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy wrote to one prompt, as a line of samples/ holds it."""

    origin: str
    prompt: str
    generated: str
    reference: str
    stopped: bool
    exact_match: bool


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as far as its directory tells.

    name:        as it was given
    origins:     by dotted key, where each setting was set
    environment, schedule, summary, verified: the JSON files of these names; empty where there is none
    counts:      by split, what the ledger says
    masks:       of how many kept records the targets come from where
    data:        None where there is no data.json
    answers:     by step, what samples/ holds of the first and the last evaluation
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
    form: Form | None
    hashes: Mapping[str, str]

    @property
    def state(self) -> str:
        """finished, stopped, failed, or that it is still running or ended without a word."""
        return str(self.summary.get("state", "running or cut off"))


def read_run(name: str, *, place: str = "command line") -> Run:
    """Reads a run directory.

    Raises ConfigError where there is none, and FinetoothError for a file that a run does not write so.
    """
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        fact, remedy = f"{name} is no run directory", "name a folder that finetooth train wrote to"
        raise ConfigError(problem(place, fact, remedy))
    ledger = folder / "ledger.jsonl"
    try:
        counts = count_ledger(ledger) if ledger.is_file() else {}
        masks = count_masks(ledger) if ledger.is_file() else {}
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise _damaged(ledger) from None
    return Run(
        name=name,
        folder=folder,
        config=load_config(folder / "config.yaml"),
        origins=origins_of((folder / "config.yaml").read_text(encoding="utf-8")),
        environment=_object(folder / "environment.json"),
        schedule=_object(folder / "schedule.json"),
        summary=_object(folder / "summary.json"),
        verified=_object(folder / "verified.json"),
        counts=counts,
        masks=masks,
        course=read_course(folder / "metrics.jsonl"),
        data=read_data_card(folder),
        answers=_answers(folder / "samples"),
        form=_form(folder / "final"),
        hashes=_hashes(folder / "final" / "MANIFEST.json"),
    )


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise _damaged(path)
    return content


def _damaged(path: Path) -> FinetoothError:
    return FinetoothError(problem(path, "not what a run writes", "restore it, or name another run"))


def _answers(folder: Path) -> dict[int, list[Answer]]:
    """Those of the first and the last evaluation."""
    steps = {int(path.stem.removeprefix("step-")): path for path in sorted(folder.glob("step-*.jsonl"))}
    ends = sorted({min(steps), max(steps)}) if steps else []
    return {step: _lines(steps[step]) for step in ends}


def _lines(path: Path) -> list[Answer]:
    try:
        return [msgspec.json.decode(line, type=Answer) for line in path.read_bytes().splitlines()]
    except msgspec.MsgspecError:
        raise _damaged(path) from None


def _form(final: Path) -> Form | None:
    if not final.is_dir():
        return None
    if (final / "adapter_config.json").is_file():
        return "adapter"
    return "pt" if (final / "model.pt").is_file() else "folder"


def _hashes(path: Path) -> dict[str, str]:
    files = _object(path).get("files", {})
    return {str(name): str(entry["sha256"]) for name, entry in files.items()}
