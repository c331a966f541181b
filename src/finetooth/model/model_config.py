"""config.json of a model: read as data, never as code, and settled for training."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

import finetooth.model.legacy.head_bias  # noqa: F401 - makes its model type known to transformers
from finetooth.base.errors import ConfigError, is_out_of_memory, problem

# What transformers and torch raise for a config.json whose values do not make a model.
UNUSABLE = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError, StrictDataclassError),
)
# Settings at any depth by which transformers would import, fetch or patch something: code of the repository,
# kernels of the hub, fused modules, another repository, anything in torch that a type's name is not. What it
# has by itself is used instead, in float32.
_LOADERS = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "fusion_config",
    "distributed_config",
    "kernel_config",
    "_name_or_path",
    "name_or_path",
    "dtype",
    "torch_dtype",
)
# Settings that say how the parameters lie on the disk, and what is wrong with that here.
_STORED_OTHERWISE = {
    "quantization_config": ("its parameters are quantised", "use the model's unquantised parameters"),
    "compression_config": ("its parameters are compressed", "use the model's uncompressed parameters"),
    "transformers_weights": ("it names a file of parameters", "give the files their usual names"),
}
TEXT_ONLY = "use a model of text alone, such as the one that it was made from"
_LARGEST_CONFIG = 16 << 20
_LARGEST_COUNT = 1 << 16
_COUNTS = ("layer", "layers", "experts", "heads", "blocks", "stages")


def read_config(path: Path, place: str) -> Any:
    """transformers' config object, with every dropout set to 0, and without what would load anything."""
    fields = _read_fields(path, place)
    for name, value in _settings_of(fields):
        if name in _STORED_OTHERWISE and value:
            fact, remedy = _STORED_OTHERWISE[name]
            raise ConfigError(problem(place, f"{path}: {fact}", remedy))
        if name.endswith(_COUNTS) and isinstance(value, int) and value > _LARGEST_COUNT:
            fact = f"{path}: {name} is {value}, more than {_LARGEST_COUNT}"
            raise ConfigError(problem(place, fact, "correct the file"))
    kind = make_config(_without_loaders(fields), f"{place}: {path}")
    if type(kind) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        if is_multimodal(kind):
            fact = f"{fields['model_type']} is multimodal, and transformers loads no language model from it"
            raise ConfigError(problem(place, f"{path}: {fact}", TEXT_ONLY))
        fact = f"{path}: {fields['model_type']} is not a causal language model"
        raise ConfigError(problem(place, fact, "use a decoder-only model"))
    return kind


def make_config(fields: dict[str, Any], subject: str) -> Any:
    """transformers' config object of these fields, with every dropout set to 0.

    subject: what holds the fields, for messages. Raises ConfigError for fields that make no model.
    """
    try:
        kind = AutoConfig.for_model(**fields)
    except UNUSABLE as error:
        raise ConfigError(problem(subject, first_line(error), "correct the file")) from error
    _settle_dropout(kind)
    return kind


def is_multimodal(config: Any) -> bool:
    """Whether a language model is one part of several."""
    return "text_config" in config.sub_configs


def first_line(error: Exception) -> str:
    """The first line of what a library says, to be quoted in a sentence. Passes on a lack of memory."""
    if is_out_of_memory(error):
        raise error
    said = str(error).strip().split("\n")[0].rstrip(".")
    return said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}"


def _read_fields(path: Path, place: str) -> dict[str, Any]:
    """The settings of a file, of a model that transformers itself contains."""
    if not path.is_file():
        raise ConfigError(problem(place, f"{path}: no such file", "name a model with its config.json"))
    if path.stat().st_size > _LARGEST_CONFIG:
        fact = f"{path}: larger than {_LARGEST_CONFIG >> 20} MB"
        raise ConfigError(problem(place, fact, "use an intact copy"))
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(problem(place, f"{path}: not JSON: {error}", "use an intact copy")) from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ConfigError(problem(place, f"{path}: no model_type", "use a transformers config.json"))
    if fields["model_type"] not in transformers.CONFIG_MAPPING:
        fact = f"{path}: transformers knows no model_type {fields['model_type']!r}"
        raise ConfigError(
            problem(place, fact, "code that comes with a model is not run; use a built-in architecture")
        )
    return fields


def _settings_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a parsed file, nested ones included."""
    if isinstance(value, dict):
        yield from value.items()
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _settings_of(entry)


def _without_loaders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_loaders(entry) for name, entry in value.items() if name not in _LOADERS}
    if isinstance(value, list):
        return [_without_loaders(entry) for entry in value]
    return value


def _settle_dropout(config: Any) -> None:
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate")) and isinstance(
            value, float | int
        ):
            setattr(config, name, 0.0)
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            _settle_dropout(part)
