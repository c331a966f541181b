"""Going on with a run: what decides its course, what has changed since the checkpoint, what may change.

The layout, the devices, logging, evaluating and saving decide nothing; any other change is refused by name,
or accepted (`--accept-changes`) and then written into metrics.jsonl:

    {"step": 11, "changes": {"training.learning_rate": {"before": 2e-05, "now": 1e-05}}}
"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from finetooth.base.errors import ConfigError, problem
from finetooth.batching.schedule import Schedule
from finetooth.config.schema import AdapterConfig, ModelConfig, SFTConfig, TrainingConfig
from finetooth.data.records import DocumentSource
from finetooth.data.templates.template import Template
from finetooth.training.checkpoint import Checkpoint

# Every other setting of `training` is part of the identity, those of future versions included.
DECIDES_NOTHING = ("packing", "row_tokens", "rows_at_once", "device")
TOLD_OTHERWISE = ("num_train_epochs", "max_steps", "warmup_steps", "precision")
NUM_STEPS = "number of steps"
_CONTENTS = ("training documents", "dev documents", "template", "base model")
_SAMPLE_BYTES = 65536
# What decides which parameters an adapter has, and so which a checkpoint holds.
_OF_PARAMETERS = ("type", "r", "target_modules", "modules_to_save", "train_tokens")


@dataclass(frozen=True, slots=True)
class Change:
    """One part of a run's identity that is not what it was when the checkpoint was saved."""

    name: str
    before: Any
    now: Any

    def in_words(self) -> str:
        """What goes on otherwise, for people."""
        if self.name in _CONTENTS:
            return f"other {self.name} than before" if self.name != "template" else "another template"
        told = f"{self.name} {self.now} instead of {self.before}"
        follows = f"; the learning rate now follows the course of {self.now} steps"
        return told + (follows if self.name == NUM_STEPS else "")


def identity_of(
    config: SFTConfig,
    *,
    documents: DocumentSource,
    dev: DocumentSource | None,
    template: Template | None,
    schedule: Schedule,
    warmup_steps: int,
    precision: str,
) -> dict[str, Any]:
    """Everything that decides the course of a run, or which checkpoint is best, by name, as JSON has it."""
    settings = asdict(config.training)
    identity = {
        "base model": _base_model(config.model),
        "training documents": documents.fingerprint,
        "dev documents": None if dev is None else dev.fingerprint,
        "template": None if template is None else template.fingerprint,
        NUM_STEPS: schedule.num_steps,
        "steps of warm-up": warmup_steps,
        "precision": precision,
        **_adapter(config.adapter),
        **{
            f"training.{name}": value
            for name, value in settings.items()
            if name not in (*DECIDES_NOTHING, *TOLD_OTHERWISE)
        },
    }
    return json.loads(json.dumps(identity))


def _adapter(adapter: AdapterConfig) -> dict[str, Any]:
    """What is trained in place of all parameters; without an adapter, none of its settings is read."""
    settings = asdict(adapter)
    read = settings if adapter.type is not None else {"type": None}
    return {f"adapter.{name}": value for name, value in read.items()}


def changes_since(checkpoint: Checkpoint, here: dict[str, Any]) -> list[Change]:
    """What differs between the run that saved a checkpoint and the one that goes on."""
    saved = checkpoint.state.identity
    before = {name: saved.get(name, _DEFAULTS.get(name)) for name in {**saved, **here}}
    return [Change(name, before[name], here.get(name)) for name in before if before[name] != here.get(name)]


def refuse_changes(changes: list[Change], checkpoint: Checkpoint) -> ConfigError:
    """The error that names every change."""
    problems = [_difference(change, checkpoint.folder) for change in changes]
    fact = "a run with other settings cannot go on here"
    remedy = "undo the change, name another folder, or accept the change with --accept-changes"
    return ConfigError([*problems, problem("output_dir", fact, remedy)])


def require_same_adapter(checkpoint: Checkpoint, adapter: AdapterConfig) -> None:
    """Raises ConfigError where a checkpoint has other parameters than the adapter; it cannot be accepted."""
    here, saved = json.loads(json.dumps(_adapter(adapter))), checkpoint.state.identity
    kind = "adapter.type"
    names = [f"adapter.{name}" for name in _OF_PARAMETERS] if here[kind] == saved.get(kind) else [kind]
    remedy = "undo the change, or name another output_dir; --accept-changes cannot bridge it"
    problems = [
        problem(name, f"{here.get(name)} here, {saved.get(name)} in {checkpoint.folder}", remedy)
        for name in names
        if here.get(name) != saved.get(name)
    ]
    if problems:
        raise ConfigError(problems)


def require_same_states(checkpoint: Checkpoint, here: dict[str, Any]) -> None:
    """Raises ConfigError where the optimiser keeps states of another form; it cannot be accepted."""
    saved = checkpoint.state.identity
    before = {name: saved.get(name, _DEFAULTS.get(name)) for name in ("training.optimizer", "precision")}
    is_pure = [precision == "bf16-pure" for precision in (before["precision"], here["precision"])]
    changed = [name for name in ("training.optimizer",) if here[name] != before[name]]
    changed += ["precision"] if is_pure[0] != is_pure[1] else []
    if changed:
        remedy = "undo the change, or name another output_dir; --accept-changes cannot bridge it"
        raise ConfigError(
            problem(name, f"{here[name]} here, {before[name]} in {checkpoint.folder}", remedy)
            for name in changed
        )


def require_steps_ahead(checkpoint: Checkpoint, num_steps: int) -> None:
    """Raises ConfigError where the run would have to end before the step that is done already."""
    done = checkpoint.state.next_step - 1
    if done > num_steps:
        fact = f"{num_steps} here, and {checkpoint.folder} has done {done}"
        raise ConfigError(problem(NUM_STEPS, fact, "raise training.max_steps or training.num_train_epochs"))


def _base_model(model: ModelConfig) -> str | None:
    """The hub name, or a hash of a model's settings, file sizes and samples of its parameters.

    A folder may move; hashing all parameters of a large model would delay every start.
    """
    named = [Path(name).expanduser() for name in (model.path, model.from_config) if name is not None]
    files = [file for path in named for file in _files_of(path)]
    if not files:
        return model.path or model.from_config
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as opened:
            for place in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                opened.seek(place)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    parameters = list(path.glob("*.safetensors")) or list(path.glob("model.pt"))
    return sorted([*parameters, *path.glob("config.json")])


def _difference(change: Change, folder: Path) -> str:
    if change.name == "base model":
        return problem(change.name, f"another than that of {folder}", "undo the change")
    if change.name in _CONTENTS:
        remedy = "undo the change of records or template"
        return problem(change.name, f"others than those of {folder}", remedy)
    return problem(change.name, f"{change.now} here, {change.before} in {folder}", "undo the change")


def _defaults() -> dict[str, Any]:
    """What settings were before they existed: a checkpoint of an older version does not name them."""
    return {
        f"training.{field.name}": field.default
        for field in fields(TrainingConfig)
        if field.default is not MISSING
    }


_DEFAULTS = _defaults()
