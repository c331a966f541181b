"""The size of a model, told from config.json and the headers of its files: nothing is loaded or built."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth.base.errors import ConfigError, problem
from finetooth.config.schema import ModelConfig
from finetooth.model.weight_files import INDEX_FILE, SINGLE_FILE, examine_weight_files

_CONFIG_FILES = ("config.json",)
_ADAPTER_CONFIG = "adapter_config.json"
_TORCH_ENDINGS = (".pt", ".pth")
# What families call the same thing; the first that config.json has counts.
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "key_heads": ("num_key_value_heads",),
    "head_width": ("head_dim",),
    "feed_forward": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "n_ctx"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_of_a_token": ("num_experts_per_tok",),
}
_TWO_MATRICES = ("gpt2", "gpt_neox", "starcoder2", "phi", "opt", "gpt_bigcode", "bloom")
_LEARNED_POSITIONS = ("gpt2", "opt", "gpt_bigcode")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """How large a model is.

    num_parameters: counted in the files where they are at hand, else computed from config.json
    is_fresh:       whether its parameters are drawn, not loaded
    positions:      longest document in tokens; None where config.json names no limit
    query_width, key_width: features of all queries, and of all keys, of a token in one layer
    feed_forward:   features inside the feed-forward blocks that a token passes in one layer
    """

    num_parameters: int
    is_fresh: bool
    positions: int | None
    vocabulary: int
    hidden: int
    layers: int
    query_width: int
    key_width: int
    feed_forward: int

    def in_words(self) -> str:
        """For people: "1.24B parameters"."""
        return f"{in_short(self.num_parameters)} parameters"


def in_short(number: float) -> str:
    """A large number with three digits.

    >>> in_short(1_235_814_400), in_short(28_400_000), in_short(4200)
    ('1.24B', '28.4M', '4.2k')
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def shape_of(model: ModelConfig, *, place: str | None = None) -> ModelShape:
    """The shape of a model that the settings name: a folder, hub name, `.pt` file or config.json.

    place: what names the model, for messages; default: the setting. Of a hub name config.json alone is
    fetched, if it is not in the cache. Raises ConfigError for a model that is absent, an adapter, or not
    described by its config.json.
    """
    if model.path is None:
        assert model.from_config is not None, "the config's validation asks for one of the two"
        place = place or "model.from_config"
        return _shape(_read_config(Path(model.from_config).expanduser(), place), None, place)
    place = place or "model.path"
    if _is_legacy(model.path):
        from finetooth.model.legacy.reading import examine_legacy  # its tables of layouts load torch

        fields, num_parameters = examine_legacy(model.path, place, config_path=model.from_config)
        return _shape(fields, num_parameters, place)
    folder = _folder(model.path, place)
    if (folder / _ADAPTER_CONFIG).is_file():
        remedy = "merge it first: finetooth export RUN --to merged"
        raise ConfigError(problem(place, f"{folder} is an adapter, not a model", remedy))
    fields = _read_config(folder / "config.json", place)
    if any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)) or Path(model.path).is_dir():
        return _shape(fields, examine_weight_files(folder, place).num_elements, place)
    return _shape(fields, _num_parameters(fields), place)


def shape_of_fields(fields: Mapping[str, Any]) -> ModelShape:
    """The shape that the fields of a config.json describe; raises ConfigError where they name no sizes."""
    return _shape(_with_text(fields), None, "model")


def _is_legacy(name: str) -> bool:
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / "model.pt").is_file() and not any(path.glob("*.safetensors"))
    return path.suffix in _TORCH_ENDINGS


def _folder(name: str, place: str) -> Path:
    if (path := Path(name).expanduser()).is_dir():
        return path
    from finetooth.base.hub import local_folder  # its libraries take longer to import than all else here

    return local_folder(name, place=place, required=_CONFIG_FILES, patterns=_CONFIG_FILES)


def _read_config(path: Path, place: str) -> Mapping[str, Any]:
    if not path.is_file():
        raise ConfigError(problem(place, f"{path}: no such file", "name a model with its config.json"))
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(problem(place, f"{path}: not JSON: {error}", "use an intact copy")) from error
    if not isinstance(fields, dict):
        raise ConfigError(problem(place, f"{path}: no JSON object", "use a transformers config.json"))
    return _with_text(fields)


def _with_text(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the fields of the language model, where the whole reads images, too."""
    text = fields.get("text_config")
    return {**fields, **text} if isinstance(text, dict) else fields


def _shape(fields: Mapping[str, Any], num_parameters: int | None, place: str) -> ModelShape:
    """num_parameters: None where they are drawn."""
    sizes = _sizes(fields, place)
    experts = sizes["experts_of_a_token"] if sizes["experts"] else 1
    return ModelShape(
        num_parameters=_num_parameters(fields) if num_parameters is None else num_parameters,
        is_fresh=num_parameters is None,
        positions=sizes["positions"] or None,
        vocabulary=sizes["vocabulary"],
        hidden=sizes["hidden"],
        layers=sizes["layers"],
        query_width=sizes["heads"] * sizes["head_width"],
        key_width=sizes["key_heads"] * sizes["head_width"],
        feed_forward=sizes["feed_forward"] * experts,
    )


def _sizes(fields: Mapping[str, Any], place: str = "model") -> dict[str, int]:
    """Every size by its name here; what config.json leaves open follows from the others, or is 0."""
    sizes = {
        name: next((value for known in names if isinstance(value := fields.get(known), int)), 0)
        for name, names in _NAMES.items()
    }
    needed = ("hidden", "layers", "heads", "vocabulary")
    if absent := [_NAMES[name][0] for name in needed if sizes[name] < 1]:
        fact = f"config.json names no {', no '.join(absent)}"
        raise ConfigError(problem(place, fact, "use the config.json of a causal language model"))
    sizes["key_heads"] = sizes["key_heads"] or sizes["heads"]
    sizes["head_width"] = sizes["head_width"] or sizes["hidden"] // sizes["heads"]
    sizes["feed_forward"] = sizes["feed_forward"] or 4 * sizes["hidden"]
    sizes["experts_of_a_token"] = sizes["experts_of_a_token"] or 1
    return sizes


def _num_parameters(fields: Mapping[str, Any]) -> int:
    """The matrices that config.json describes; biases and norms are left out, under a thousandth."""
    sizes = _sizes(fields)
    hidden = sizes["hidden"]
    attention = 2 * hidden * sizes["head_width"] * (sizes["heads"] + sizes["key_heads"])
    num_matrices = 2 if fields.get("model_type") in _TWO_MATRICES else 3
    feed_forward = num_matrices * hidden * sizes["feed_forward"] * max(1, sizes["experts"])
    is_tied = fields.get("tie_word_embeddings", fields.get("model_type") == "gpt2")
    embeddings = sizes["vocabulary"] * hidden * (1 if is_tied else 2)
    if fields.get("model_type") in _LEARNED_POSITIONS:
        embeddings += sizes["positions"] * hidden
    return sizes["layers"] * (attention + feed_forward) + embeddings
