"""The run directory: everything a run leaves behind, and who may write into it.

config.yaml        every value and its origin
environment.json   versions, device, command, tokens of the template
schedule.json      documents, tokens, steps, fingerprint
ledger.jsonl       the fate of every record
data.json          some records token by token, figures of all, rows of the first step
metrics.jsonl      one line per step and per evaluation
checkpoints/       step-000200/ …, best → the one with the best evaluation
samples/           generations at each evaluation
final/             the policy, as transformers loads it
summary.json       how it ended; gone while it goes on
report.html        all of this as one page
verified.json      what `finetooth export --verify` found
.lock              host and process of the run that is writing; gone when it has ended
"""

import contextlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from finetooth import __version__
from finetooth.base.devices import DeviceManager, Precision
from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import check_folder, create_folder, write_atomically
from finetooth.config.describe import describe_config
from finetooth.config.schema import SFTConfig
from finetooth.evaluation.run_files import Environment, Summary, read_object
from finetooth.training.run_lock import LOCK_NAME, locked

Resume = Literal["never", "must", "auto"]
PLACE = "output_dir"
NO_RESUME = "leave --resume out, or write --resume auto"
SHORTEST_SECRET = 8
_SECRET_NAME = re.compile("TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@contextlib.contextmanager
def claimed_run_directory(path: Path, *, resume: Resume) -> Iterator[None]:
    """Creates the folder if need be and holds it against other runs; left empty, it is removed again.

    never: the folder must be absent or empty. must: it holds a run. auto: absent, empty, or a run.
    Raises ConfigError where this run may not write into it.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(problem(PLACE, f"{path} is a file", "name a folder"))
    if resume == "must" and not path.exists():
        raise ConfigError(problem(PLACE, f"{path} holds no run", NO_RESUME))
    is_new = not path.exists()
    create_folder(path)
    try:
        with locked(path, place=PLACE):
            _refuse_contents(path, resume)
            yield
    finally:
        if is_new and not any(path.iterdir()):
            path.rmdir()


def _refuse_contents(path: Path, resume: Resume) -> None:
    is_run = (path / "config.yaml").is_file()
    if not is_run and any(entry.name != LOCK_NAME for entry in path.iterdir()):
        fact = f"{path} holds files that are not a run's"
        raise ConfigError(problem(PLACE, fact, "name an empty or new folder"))
    if resume == "must" and not is_run:
        raise ConfigError(problem(PLACE, f"{path} holds no run", NO_RESUME))
    if resume == "never" and is_run:
        has_checkpoint = any(path.glob("checkpoints/step-*"))
        remedy = "add --resume" if has_checkpoint else "add --resume auto to start it anew"
        raise ConfigError(problem(PLACE, f"{path} already holds a run", f"{remedy}, or name another folder"))


def describe_run(
    path: Path,
    *,
    config: SFTConfig,
    devices: DeviceManager,
    schedule: dict[str, Any],
    ledger: Path,
    template: dict[str, Any],
) -> None:
    """Writes what is known before the first step; template: what environment.json says of it."""
    write_atomically(path / "config.yaml", describe_config(config).encode())
    write_json(path / "environment.json", _environment(devices) | {"template": template})
    write_json(path / "schedule.json", schedule)
    shutil.copyfile(ledger, path / "ledger.jsonl")


def told_cpu_precision(path: Path) -> Precision | None:
    """What a run on a CPU computes in, measured when it began; None of other runs, or if there is none.

    Raises FinetoothError for an environment.json that no run writes so.
    """
    told = read_object(path / "environment.json", Environment)
    precision = told.get("precision") if told.get("device_type") == "cpu" else None
    return precision if precision in get_args(Precision) else None


def finished_summary(path: Path) -> dict[str, Any] | None:
    """summary.json of a run that ended and whose policy is intact; None of any other.

    Raises FinetoothError for a summary.json that no run writes so.
    """
    summary = read_object(path / "summary.json", Summary)
    return summary if summary.get("state") == "finished" and not check_folder(path / "final") else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes one JSON object, readable by people, atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _environment(devices: DeviceManager) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.describe(),
        "device_type": devices.device.type,
        "precision": devices.precision,
        "command": [_without_secrets(argument) for argument in sys.argv],
        "versions": {"finetooth": __version__, **{name: version(name) for name in LIBRARIES}},
    }


def _without_secrets(argument: str) -> str:
    """The argument with $NAME for what the environment holds as a token, key or password."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            argument = argument.replace(value, f"${name}")
    return argument
