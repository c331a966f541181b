"""A base model as transformers has it: parameters from a folder of safetensors, or fresh ones."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetooth.base.devices import deterministic_seed
from finetooth.base.errors import ConfigError, problem
from finetooth.base.hub import local_folder
from finetooth.model.model_config import UNUSABLE, first_line, read_config

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")
SHOWN_NAMES = 5


def load_folder(name: str, place: str) -> PreTrainedModel:
    """The model of a folder or hub name, with float32 parameters on the CPU.

    place: what names the model, for messages. Raises ConfigError for one that is absent or incomplete.
    """
    folder = local_folder(name, place=place, required=("config.json", "*.safetensors"), patterns=MODEL_FILES)
    config = read_config(folder / "config.json", place)
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
    except (SafetensorError, OSError, *UNUSABLE) as error:
        raise ConfigError(
            problem(place, f"{folder}: {first_line(error)}", "check the folder's files")
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


def build_fresh(path: Path, place: str, *, seed: int) -> PreTrainedModel:
    """A model with fresh float32 parameters, drawn with the seed, after a config.json."""
    config = read_config(path, place)
    try:
        with deterministic_seed(seed):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except UNUSABLE as error:
        raise ConfigError(problem(place, f"{path}: {first_line(error)}", "correct the file")) from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
