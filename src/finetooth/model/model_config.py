"""config.json of a model: read as data, never as code, and settled for training."""

import json
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from finetooth.base.errors import ConfigError, problem

# What transformers raises for a config.json whose values do not make a model.
UNUSABLE = (ValueError, TypeError, ImportError, StrictDataclassError)


def read_config(path: Path, place: str) -> Any:
    """transformers' config object, with every dropout set to 0."""
    if not path.is_file():
        raise ConfigError(problem(place, f"{path}: no such file", "name a model with its config.json"))
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(problem(place, f"{path}: not JSON: {error}", "use an intact copy")) from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ConfigError(problem(place, f"{path}: no model_type", "use a transformers config.json"))
    if fields["model_type"] not in transformers.CONFIG_MAPPING:
        fact = f"{path}: transformers knows no model_type {fields['model_type']!r}"
        raise ConfigError(
            problem(place, fact, "code that comes with a model is not run; use a built-in architecture")
        )
    if "quantization_config" in fields:
        fact = f"{path}: its parameters are quantised"
        raise ConfigError(problem(place, fact, "use the model's unquantised parameters"))
    fields.pop("auto_map", None)
    try:
        kind = AutoConfig.for_model(**fields)
    except UNUSABLE as error:
        raise ConfigError(problem(place, f"{path}: {first_line(error)}", "correct the file")) from error
    if type(kind) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        fact = f"{path}: {fields['model_type']} is not a causal language model"
        raise ConfigError(problem(place, fact, "use a decoder-only model"))
    for name, value in kind.to_dict().items():
        if name.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate")) and isinstance(
            value, float | int
        ):
            setattr(kind, name, 0.0)
    return kind


def first_line(error: BaseException) -> str:
    """The first line of what a library says, to be quoted in a sentence."""
    return str(error).strip().split("\n")[0].rstrip(".")
