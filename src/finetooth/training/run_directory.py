"""The run directory: everything a run leaves behind, and who may write into it.

config.yaml        every value and its origin
environment.json   versions, device, command
schedule.json      documents, tokens, steps, fingerprint
ledger.jsonl       the fate of every record
metrics.jsonl      one line per step and per evaluation
checkpoints/       step-000200/ …, best → the one with the lowest dev loss
samples/           generations at each evaluation
final/             the policy, as transformers loads it
summary.json       how it ended
"""

import json
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from finetooth import __version__
from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import write_atomically
from finetooth.config.describe import describe_config
from finetooth.config.schema import SFTConfig

Resume = Literal["never", "must", "auto"]
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def claim_run_directory(path: Path, *, resume: Resume) -> None:
    """Refuses a folder that this run may not write into; creates nothing.

    never: the folder must be absent or empty. must: it holds a run with a checkpoint. auto: absent,
    empty, or a run. Raises ConfigError.
    """
    place = "output_dir"
    if path.exists() and not path.is_dir():
        raise ConfigError(problem(place, f"{path} is a file", "name a folder"))
    is_used = path.is_dir() and any(path.iterdir())
    is_run = (path / "config.yaml").is_file()
    if is_used and not is_run:
        raise ConfigError(
            problem(place, f"{path} holds files that are not a run's", "name an empty or new folder")
        )
    if is_used and resume == "never":
        raise ConfigError(
            problem(place, f"{path} already holds a run", "add --resume, or name another folder")
        )
    if resume == "must" and not is_run:
        raise ConfigError(
            problem(place, f"{path} holds no run", "leave --resume out, or write --resume auto")
        )


def describe_run(
    path: Path, *, config: SFTConfig, devices: DeviceManager, schedule: dict[str, Any], ledger: Path
) -> None:
    """Writes what is known before the first step."""
    write_atomically(path / "config.yaml", describe_config(config).encode())
    write_json(path / "environment.json", _environment(devices))
    write_json(path / "schedule.json", schedule)
    shutil.copyfile(ledger, path / "ledger.jsonl")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes one JSON object, readable by people, atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _environment(devices: DeviceManager) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.describe(),
        "command": sys.argv,
        "versions": {"finetooth": __version__, **{name: version(name) for name in LIBRARIES}},
    }
