"""Going on with a run: what decides its course, what has changed since the checkpoint, what may change.

The layout, the devices, logging, evaluating and saving decide nothing, but for what says which evaluation is
the best and when a run has waited long enough for a better one. Any other change is refused by name, or
accepted (`--accept-changes`) and then written into metrics.jsonl:

    {"step": 11, "changes": {"training.learning_rate": {"before": 2e-05, "now": 1e-05}}}
"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from finetooth.base.errors import ConfigError, problem
from finetooth.batching.schedule import Schedule
from finetooth.config.figures import SHARES
from finetooth.config.schema import AdapterConfig, EvaluationConfig, ModelConfig, SFTConfig, TrainingConfig
from finetooth.config.wording import as_yaml
from finetooth.data.records import DocumentSource
from finetooth.data.templates.template import Template
from finetooth.training.checkpoint import Checkpoint

# Every other setting of `training` is part of the identity, those of future versions included.
DECIDES_NOTHING = ("packing", "row_tokens", "rows_at_once", "recompute", "compile", "device")
TOLD_OTHERWISE = ("num_train_epochs", "max_steps", "warmup_steps", "precision")
NUM_STEPS = "number of steps"
_DOCUMENTS = ("training documents", "dev documents")
_CONTENTS = (*_DOCUMENTS, "tokenizer", "template", "base model")
_PATIENCE = ("evaluation.patience", "evaluation.every")
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
            return f"other {self.name} than before" if self.name in _DOCUMENTS else f"another {self.name}"
        told = f"{self.name} {as_yaml(self.now)} instead of {as_yaml(self.before)}"
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
    """Everything that decides a run's course, its end or its best checkpoint, by name, as JSON has it."""
    settings = asdict(config.training)
    identity = {
        "base model": _base_model(config.model),
        "training documents": documents.fingerprint,
        "dev documents": None if dev is None else dev.fingerprint,
        "tokenizer": None if template is None else template.tokenizer.fingerprint,
        "template": None if template is None else template.fingerprint,
        NUM_STEPS: schedule.num_steps,
        "steps of warm-up": warmup_steps,
        "precision": precision,
        **{f"data.{name}": value for name, value in asdict(config.data).items() if name != "cache_dir"},
        **_adapter(config.adapter),
        **_judging(config.evaluation),
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


def _judging(evaluation: EvaluationConfig) -> dict[str, Any]:
    """What says which evaluation is the best and when to stop, and what else decides that here."""
    figure, settings = evaluation.best_by, asdict(evaluation)
    names = ["best_by", "patience"]
    names += [] if evaluation.patience is None else ["every"]
    names += ["exact_match", "exact_match_records", "max_new_tokens"] if figure in SHARES else []
    names += ["train_documents"] if figure.startswith("train_") else []
    return {f"evaluation.{name}": settings[name] for name in names}


def changes_since(checkpoint: Checkpoint, here: dict[str, Any]) -> list[Change]:
    """What differs between the run that saved a checkpoint and the one that goes on.

    Settings of `data` decide by the documents they make: where these are the same, none has changed.
    """
    saved = checkpoint.state.identity
    # What an older version did not save was what is the default now, or cannot be told.
    known = _DEFAULTS | _judging(EvaluationConfig())
    before = {name: saved.get(name, known.get(name, here[name])) for name in here}
    changes = [Change(name, before[name], here[name]) for name in here if before[name] != here[name]]
    if any(change.name in _DOCUMENTS for change in changes):
        return changes
    return [change for change in changes if not change.name.startswith("data.")]


def refuse_changes(changes: list[Change], checkpoint: Checkpoint) -> ConfigError:
    """The error that names every change."""
    problems = [_difference(change, checkpoint.folder) for change in changes]
    fact = "a run with other settings cannot go on here"
    remedy = "undo the change, name another folder, or accept the change with --accept-changes"
    return ConfigError([*problems, problem("output_dir", fact, remedy)])


def is_best_comparable(changes: list[Change]) -> bool:
    """Whether evaluations from here on can be held against those before the changes."""
    names = [change.name for change in changes if change.name not in _PATIENCE]
    return not any(name == "dev documents" or name.startswith("evaluation.") for name in names)


def require_same_adapter(checkpoint: Checkpoint, adapter: AdapterConfig) -> None:
    """Raises ConfigError where a checkpoint has other parameters than the adapter; it cannot be accepted."""
    here, saved = json.loads(json.dumps(_adapter(adapter))), checkpoint.state.identity
    kind = "adapter.type"
    names = [f"adapter.{name}" for name in _OF_PARAMETERS] if here[kind] == saved.get(kind) else [kind]
    remedy = "undo the change, or name another output_dir; --accept-changes cannot bridge it"
    problems = [
        problem(name, _here_and_saved(here.get(name), saved.get(name), checkpoint.folder), remedy)
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
            problem(name, _here_and_saved(here[name], before[name], checkpoint.folder), remedy)
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
    fact = _here_and_saved(change.now, change.before, folder)
    if change.name in _CONTENTS:
        fact = "others than those" if change.name in _DOCUMENTS else "another than that"
        fact += f" of {folder}"
    return problem(change.name, fact, "undo the change")


def _here_and_saved(here: object, saved: object, folder: Path) -> str:
    return f"{as_yaml(here)} here, {as_yaml(saved)} in {folder}"


def _defaults() -> dict[str, Any]:
    """What settings were before they existed: a checkpoint of an older version does not name them."""
    return {
        f"training.{field.name}": field.default
        for field in fields(TrainingConfig)
        if field.default is not MISSING
    }


_DEFAULTS = _defaults()
