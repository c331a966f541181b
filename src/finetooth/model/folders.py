"""A base model as transformers has it: parameters from a folder of safetensors, or fresh ones."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetooth.base.devices import deterministic_seed
from finetooth.base.errors import ConfigError, problem
from finetooth.base.hub import local_folder
from finetooth.model.model_config import TEXT_ONLY, UNUSABLE, first_line, is_multimodal, read_config
from finetooth.model.weight_files import Extent, examine_weight_files, some_names, weight_files

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")
ADAPTER_CONFIG = "adapter_config.json"
# What a config.json may exceed its files by, so that a few missing parameters are told by their names.
_FEW_LAYERS, _SLACK = 1000, 1 << 20


def load_folder(
    name: str, place: str, *, dtype: torch.dtype = torch.float32, options: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The model of a folder or hub name, on the CPU.

    place: what names the model, for messages. options: more for transformers' `from_pretrained`.
    Raises ConfigError for a model that is absent or incomplete.
    """
    folder, config = _examined(name, place)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **(options or {}),
        )
    except (OSError, *UNUSABLE) as error:
        raise ConfigError(
            problem(place, f"{folder}: {first_line(error)}", "check the folder's files")
        ) from error
    model, report = loaded
    differences = {
        "are missing": sorted(report["missing_keys"]),
        "have another shape than config.json says": sorted(entry[0] for entry in report["mismatched_keys"]),
        "have no place in the model": sorted(report["unexpected_keys"]),
    }
    remedy = TEXT_ONLY if is_multimodal(config) else "check that they belong together"
    problems = [
        problem(place, f"{folder}: {len(names)} parameters {what}: {some_names(names)}", remedy)
        for what, names in differences.items()
        if names
    ]
    broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    problems += broken_values(folder, broken, place)
    if problems:
        raise ConfigError(problems)
    return model


@dataclass(frozen=True, slots=True)
class EmptyModel:
    """A model without its parameters (device `meta`), and the files that hold them. Buffers are there."""

    model: PreTrainedModel
    folder: Path
    files: list[Path]


def lay_out_folder(name: str, place: str, *, dtype: torch.dtype) -> EmptyModel:
    """The model of a folder or hub name before its parameters are read, which will be of that type.

    Raises ConfigError where it is absent or its files cannot be used.
    """
    folder, config = _examined(name, place)
    try:
        with _parameters_without_memory():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except UNUSABLE as error:
        fact = f"{folder / 'config.json'}: {first_line(error)}"
        raise ConfigError(problem(place, fact, "correct the file")) from error
    return EmptyModel(model, folder, weight_files(folder, place))


def broken_values(folder: Path, names: Iterable[str], place: str) -> list[str]:
    """A problem for each parameter that holds a value which is not finite."""
    return [
        problem(place, f"{folder}: {name} holds values that are not finite", "use an intact copy")
        for name in names
    ]


def adapter_folder(name: str | None) -> Path | None:
    """The folder of that name where it holds an adapter rather than a model, else None."""
    folder = Path(name or "").expanduser()
    return folder if name and (folder / ADAPTER_CONFIG).is_file() else None


def build_fresh(path: Path, place: str, *, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with fresh parameters of this type, drawn with the seed, after a config.json."""
    config = read_config(path, place)
    try:
        with deterministic_seed(seed):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except UNUSABLE as error:
        raise ConfigError(problem(place, f"{path}: {first_line(error)}", "correct the file")) from error


def _examined(name: str, place: str) -> tuple[Path, Any]:
    """The folder of a model and its config, when its files can be used."""
    folder = local_folder(name, place=place, required=("config.json", "*.safetensors"), patterns=MODEL_FILES)
    if (folder / ADAPTER_CONFIG).is_file():
        # transformers would put the adapter into the model without a word
        remedy = "name the folder of a model; an adapter is read from a folder on this machine"
        raise ConfigError(problem(place, f"{name} holds an adapter", remedy))
    config = read_config(folder / "config.json", place)
    _refuse_bombs(config, examine_weight_files(folder, place), folder, place)
    return folder, config


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Within it, parameters of new modules have a shape only; buffers are computed, as no file holds them."""
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":  # one that is tied stays the same
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _refuse_bombs(config: Any, extent: Extent, folder: Path, place: str) -> None:
    """Raises ConfigError for a config.json of a far larger model than the one whose parameters are there.

    What is missing would be allocated before it could be told. The model is laid out without any memory.
    """
    remedy = "check that they belong together"
    num_layers = getattr(config, "num_hidden_layers", 0)
    if num_layers > max(extent.num_tensors, _FEW_LAYERS):
        fact = f"{folder}: {num_layers} layers by config.json, but {extent.num_tensors} tensors in the files"
        raise ConfigError(problem(place, fact, remedy))
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except UNUSABLE as error:
        fact = f"{folder / 'config.json'}: {first_line(error)}"
        raise ConfigError(problem(place, fact, "correct the file")) from error
    num_elements = sum(parameter.numel() for parameter in model.parameters())
    if num_elements > 2 * extent.num_elements + _SLACK:
        fact = f"{folder}: {num_elements:,} parameters by config.json, {extent.num_elements:,} in the files"
        raise ConfigError(problem(place, fact, remedy))
