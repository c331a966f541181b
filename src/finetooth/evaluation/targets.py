"""What is judged or talked to: a run's policy, a checkpoint of it, a model folder, hub name or `.pt` file.

Only names, files and settings are looked at here; no parameters are loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetooth.base.errors import ConfigError, all_at_once, problem
from finetooth.base.files import check_folder
from finetooth.evaluation.run_files import Environment, read_object

PLACE = "command line"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a policy comes from.

    name: as it was given
    path: what holds the parameters: a folder, a hub name or a `.pt` file
    run:  the run directory that it belongs to; None of a model that is no run's
    """

    name: str
    path: str
    run: Path | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is what a run ended with, rather than one of its checkpoints or a model."""
        return self.run is not None and Path(self.path) == self.run / "final"

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint of a run, which holds no tokenizer."""
        return self.run is not None and not self.is_run


def find_targets(names: Sequence[str]) -> list[Target]:
    """The targets of these names; raises ConfigError with every one that is not there or not complete."""
    return all_at_once(find_target, names)


def find_target(name: str) -> Target:
    """The target of a name; one that is neither a run nor a checkpoint of one is taken for a model.

    Raises ConfigError for a run that has not finished, and for a checkpoint that is not there or damaged.
    """
    run = run_of(name)
    if run is None:
        return Target(name, name)
    if not _is_checkpoint(Path(name)):
        if not (run / "final").is_dir():
            fact = f"{name} has no final/"
            raise ConfigError(problem(PLACE, fact, "finish the run with train --resume"))
        return Target(name, str(run / "final"), run)
    if not Path(name).is_dir():
        there = ", ".join(_checkpoint_names(run)) or "no checkpoint"
        raise ConfigError(problem(PLACE, f"{name}: no such checkpoint", f"the run has {there}"))
    if damages := check_folder(Path(name), hashes=False):
        fact = f"{name} is damaged: {damages[0]}"
        raise ConfigError(problem(PLACE, fact, "restore it, or name another checkpoint"))
    return Target(name, name, run)


def settings_file(names: Sequence[str]) -> Path:
    """config.yaml of the first of these names that belongs to a run; raises ConfigError where none does."""
    run = next(filter(None, map(run_of, names)), None)
    if run is None:
        fact = (
            f"{names[0]} is no run directory" if len(names) == 1 else "none of the targets belongs to a run"
        )
        raise ConfigError(problem(PLACE, fact, "add --config RUN.yaml"))
    return run / "config.yaml"


def run_of(name: str) -> Path | None:
    """The run directory that a name is or would be a checkpoint of; None of any other."""
    path = Path(name)
    if _is_run(path):
        return path
    run = _folder_above(path).parent
    return run if _is_checkpoint(path) else None


def template_notes(run: Path) -> dict[str, Any]:
    """What environment.json of a run says of its template; empty where there is none, or it says nothing.

    Raises FinetoothError for a file that no run writes so.
    """
    return read_object(run / "environment.json", Environment).get("template", {})


def told_time(run: Path) -> datetime | None:
    """The time that a run's template tells; None where it tells none, or there is no run yet."""
    told = template_notes(run).get("now")
    return None if told is None else datetime.fromisoformat(told)


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is, or would be, in the folder of a run's checkpoints."""
    above = _folder_above(path)
    return not _is_run(path) and above.name == _CHECKPOINTS and _is_run(above.parent)


def _folder_above(path: Path) -> Path:
    """The folder that a path lies in, as it was written where that shows its name."""
    return path.parent if path.parent.name == _CHECKPOINTS else path.absolute().parent


def _checkpoint_names(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / _CHECKPOINTS).glob("step-*") if folder.is_dir())
