"""Loads a policy, or builds one from fresh parameters, and proves that it computes what it should."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetooth.base.devices import DeviceManager, deterministic_seed
from finetooth.base.errors import ConfigError, problem
from finetooth.base.hub import local_folder
from finetooth.config.schema import ModelConfig
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.model.isolation import settle_packing
from finetooth.model.policy import PolicyModel
from finetooth.model.quiet import quiet_transformers
from finetooth.model.vocabulary import find_misfit

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")
SHOWN_NAMES = 5
# What transformers raises for a config.json whose values do not make a model.
_UNUSABLE = (ValueError, TypeError, ImportError, StrictDataclassError)


def load_policy(
    model: ModelConfig,
    *,
    devices: DeviceManager,
    seed: int = 42,
    place: str | None = None,
    must_pack: bool = False,
) -> PolicyModel:
    """A policy with float32 parameters on the device, proved to compute documents exactly.

    model: `path`, a folder or hub name (parameters from safetensors; no code from the repository is
    run), or `from_config`, a config.json for fresh parameters drawn with the seed.
    Every dropout in the model's own config is set to 0. place: what names the model, for messages.
    must_pack: whether documents must be able to share a row; see `settle_packing`.
    Raises ConfigError for a model that is absent, incomplete, or not computed exactly by finetooth.
    """
    place = place or ("model.path" if model.path else "model.from_config")
    with quiet_transformers():
        if model.path is not None:
            loaded = _load(model.path, place)
        else:
            assert model.from_config is not None, "the config's validation asks for one of the two"
            loaded = _build(Path(model.from_config), place, seed=seed)
    _refuse_what_is_not_computed(loaded, place)
    policy = PolicyModel(loaded.to(devices.device))  # pyright: ignore[reportArgumentType]
    settle_packing(policy, devices=devices, place=place, must_pack=must_pack)
    return policy


def refuse_misfits(policy: PolicyModel, tokenizer: Tokenizer | None, *, longest_document: int) -> None:
    """Raises ConfigError where the policy lacks an embedding for a token or a position in a document."""
    problems: list[str] = []
    if tokenizer is not None:
        problems += find_misfit(policy, tokenizer.largest_id)
    positions = getattr(policy.model.config, "max_position_embeddings", longest_document)
    if longest_document > positions:
        fact = f"the longest document has {longest_document} tokens, the model {positions} positions"
        problems.append(problem("data.max_length", fact, f"write {positions} or less"))
    if problems:
        raise ConfigError(problems)


def _load(name: str, place: str) -> PreTrainedModel:
    folder = local_folder(name, place=place, required=("config.json", "*.safetensors"), patterns=MODEL_FILES)
    config = _read_config(folder / "config.json", place)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            problem(place, f"{folder} holds no *.safetensors file", "name a folder with parameters")
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, *_UNUSABLE) as error:
        raise ConfigError(
            problem(place, f"{folder}: {_first_line(error)}", "check the folder's files")
        ) from error
    model, report = loaded
    differences = {
        "are missing": sorted(report["missing_keys"]),
        "have another shape than config.json says": sorted(entry[0] for entry in report["mismatched_keys"]),
        "have no place in the model": sorted(report["unexpected_keys"]),
    }
    problems = [
        problem(
            place,
            f"{folder}: {len(names)} parameters {what}: {_some(names)}",
            "check that they belong together",
        )
        for what, names in differences.items()
        if names
    ]
    problems += [
        problem(place, f"{folder}: {name} holds values that are not finite", "use an intact copy")
        for name, parameter in model.named_parameters()
        if not torch.isfinite(parameter).all()
    ]
    if problems:
        raise ConfigError(problems)
    return model


def _build(path: Path, place: str, *, seed: int) -> PreTrainedModel:
    config = _read_config(path, place)
    try:
        with deterministic_seed(seed):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except _UNUSABLE as error:
        raise ConfigError(problem(place, f"{path}: {_first_line(error)}", "correct the file")) from error


def _read_config(path: Path, place: str) -> Any:
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
    except _UNUSABLE as error:
        raise ConfigError(problem(place, f"{path}: {_first_line(error)}", "correct the file")) from error
    if type(kind) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        fact = f"{path}: {fields['model_type']} is not a causal language model"
        raise ConfigError(problem(place, fact, "use a decoder-only model"))
    for name, value in kind.to_dict().items():
        if name.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate")) and isinstance(
            value, float | int
        ):
            setattr(kind, name, 0.0)
    return kind


def _refuse_what_is_not_computed(model: PreTrainedModel, place: str) -> None:
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        fact = f"{type(model).__name__}: its head is not one linear layer"
        raise ConfigError(problem(place, fact, "use another architecture"))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
