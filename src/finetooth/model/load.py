"""Loads a policy, or builds one from fresh parameters, and proves that it computes what it should."""

from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.config.schema import ModelConfig
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.model import four_bits
from finetooth.model.folders import adapter_folder, build_fresh, load_folder
from finetooth.model.isolation import settle_packing
from finetooth.model.legacy.origin import freeze_absent
from finetooth.model.legacy.reading import is_legacy, load_legacy
from finetooth.model.policy import PolicyModel
from finetooth.model.quiet import quiet_transformers
from finetooth.model.vocabulary import find_misfit

AdapterKind = Literal["lora", "dora", "qlora"]


def load_policy(
    model: ModelConfig,
    *,
    devices: DeviceManager,
    seed: int = 42,
    place: str | None = None,
    must_pack: bool = False,
    frozen_for: AdapterKind | None = None,
) -> PolicyModel:
    """A policy on the device, proved to compute documents exactly.

    model: as for `load_model`. A folder with an adapter gives its base with the adapter in it.
    Every dropout in the model's own config is set to 0. place: what names the model, for messages.
    must_pack: whether documents must be able to share a row; see `settle_packing`.
    frozen_for: the kind of adapter that is trained in place of the parameters. These are float32, or bf16
    with bf16-pure; frozen ones are in the type that the devices compute in, or in 4 bits for qlora.
    Raises ConfigError for a model that is absent, incomplete, or not computed exactly by finetooth.
    """
    place = place or ("model.path" if model.path else "model.from_config")
    adapter = adapter_folder(model.path)
    if adapter is not None:
        return _load_adapted(adapter, place, devices=devices, must_pack=must_pack, kind=frozen_for or "lora")
    if frozen_for is None or model.path is None:
        loaded = load_model(model, place=place, seed=seed, dtype=devices.parameter_dtype)
    else:
        loaded = _load_frozen(model.path, place, devices=devices, frozen_for=frozen_for)
    refuse_what_is_not_computed(loaded, place)
    policy = PolicyModel(loaded.to(devices.device))  # pyright: ignore[reportArgumentType]
    settle_packing(policy, devices=devices, place=place, must_pack=must_pack)
    return policy


def load_model(
    model: ModelConfig, *, place: str, seed: int = 42, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The transformers model that the settings name, with parameters of this type on the CPU.

    model: `path`, a folder or hub name (parameters from safetensors; no code from the repository is run) or
    a `.pt` file of a described system, with `from_config` where it holds parameters alone; or only
    `from_config`, a config.json for fresh parameters drawn with the seed.
    Parameters that the layout of a `.pt` file lacks are zero and not trained.
    Raises ConfigError for a model that is absent or incomplete.
    """
    with quiet_transformers():
        if model.path is None:
            assert model.from_config is not None, "the config's validation asks for one of the two"
            return build_fresh(Path(model.from_config), place, seed=seed, dtype=dtype)
        if is_legacy(model.path):
            loaded = load_legacy(model.path, place, config_path=model.from_config)
            for parameter in loaded.parameters():  # buffers stay in float32, as where a folder is loaded
                parameter.data = parameter.data.to(dtype)
        else:
            loaded = load_folder(model.path, place, dtype=dtype)
    freeze_absent(loaded, place)
    return loaded


def _load_frozen(
    path: str, place: str, *, devices: DeviceManager, frozen_for: AdapterKind
) -> PreTrainedModel:
    options = four_bits.loading_options(devices) if frozen_for == "qlora" else {}
    with quiet_transformers():
        loaded = load_folder(path, place, dtype=devices.compute_dtype, options=options)
    four_bits.keep_packing(loaded)
    return loaded


def _load_adapted(
    folder: Path, place: str, *, devices: DeviceManager, must_pack: bool, kind: AdapterKind
) -> PolicyModel:
    from finetooth.model.adapters import read_adapter, read_adapter_config  # loads peft, which takes seconds

    base = ModelConfig(path=read_adapter_config(folder, place=place).base_model_name_or_path)
    if adapter_folder(base.path) is not None:
        fact, remedy = f"{folder}: its base {base.path} is an adapter as well", "merge that one first"
        raise ConfigError(problem(place, fact, remedy))
    base_place = f"{place}: base of {folder}"
    policy = load_policy(base, devices=devices, place=base_place, must_pack=must_pack, frozen_for=kind)
    policy.adapter = read_adapter(policy.model, folder, place=place)
    return policy


def refuse_misfits(policy: PolicyModel, tokenizer: Tokenizer | None, *, longest_document: int) -> None:
    """Raises ConfigError where the policy lacks an embedding for a token or a position in a document."""
    problems: list[str] = []
    if tokenizer is not None:
        problems += find_misfit(policy, tokenizer.largest_id)
    config = policy.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", longest_document)
    if longest_document > positions:
        fact = f"the longest document has {longest_document} tokens, the model {positions} positions"
        problems.append(problem("data.max_length", fact, f"write {positions} or less"))
    if problems:
        raise ConfigError(problems)


def refuse_what_is_not_computed(model: PreTrainedModel, place: str) -> None:
    """Raises ConfigError for a model whose head or backbone finetooth cannot tell."""
    if model.base_model is model:
        fact = f"{type(model).__name__}: its backbone cannot be told from its head"
        raise ConfigError(problem(place, fact, "use another architecture"))
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        fact = f"{type(model).__name__}: its head is not one linear layer"
        raise ConfigError(problem(place, fact, "use another architecture"))
