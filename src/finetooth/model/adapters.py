"""Adapters: low-rank matrices beside a frozen base's linear layers, through peft; trained rows of new tokens.

On disk an adapter is what peft reads:

    adapter_config.json          kind, rank, which layers, and the base it belongs to
    adapter_model.safetensors    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", …

R rows of embedding and head that are trained, D hidden, V vocabulary.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetooth.base.devices import deterministic_seed
from finetooth.base.errors import ConfigError, problem
from finetooth.config.schema import AdapterConfig
from finetooth.model.dropout import AdapterDropout, KeyedDropout
from finetooth.model.folders import ADAPTER_CONFIG
from finetooth.model.four_bits import import_bitsandbytes
from finetooth.model.loss import TrainedRows
from finetooth.model.model_config import first_line
from finetooth.model.quiet import quiet_transformers

import_bitsandbytes()  # before peft, which imports it wherever it is installed

from peft import LoraConfig, PeftModel, PeftModelForCausalLM  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict  # noqa: E402
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper  # noqa: E402

TENSORS_FILE = "adapter_model.safetensors"
_NAME = "default"
_PREFIX = "base_model.model."
# What an adapter may be made of; every other field of its config must be as peft has it by default.
_READ_FIELDS = (
    *("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "modules_to_save", "trainable_token_indices"),
    *("layers_to_transform", "layers_pattern", "ensure_weight_tying"),
)
_WITHOUT_EFFECT = (
    *("base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "init_lora_weights"),
    *("task_type", "peft_type", "peft_version", "auto_mapping"),
)


@dataclass(frozen=True)
class Adapter:
    """An adapter that was put into a model; the model's own modules hold its parameters.

    peft: wraps the model, and knows how adapters are named, saved and switched off.
    dropout: of the adapter's inputs.
    """

    peft: PeftModel
    dropout: KeyedDropout

    @property
    def base_name(self) -> str:
        """Folder or hub name of the base."""
        return str(self.peft.peft_config[_NAME].base_model_name_or_path)

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within it, the model computes what its base does."""
        with self.peft.disable_adapter():
            yield

    def plain_module(self, module: nn.Module) -> nn.Module:
        """The embedding or head that computes, behind what the adapter wraps around it."""
        if isinstance(module, ModulesToSaveWrapper):
            trained = cast(nn.ModuleDict, module.modules_to_save)[_NAME]
            return cast(nn.Module, module.original_module) if module.disable_adapters else trained
        return module.token_adapter.base_layer if isinstance(module, TrainableTokensWrapper) else module

    def trained_rows(self, module: nn.Module) -> TrainedRows | None:
        """The rows of a head that the adapter trains; None where there are none, or it is switched off."""
        if not isinstance(module, TrainableTokensWrapper) or module.disable_adapters:
            return None
        layer = module.token_adapter
        values_RD = layer.trainable_tokens_delta[_NAME]
        return TrainedRows(torch.tensor(layer.token_indices[_NAME], device=values_RD.device), values_RD)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's parameters under their names on disk; those of training itself, not copies."""
        parameters = _base_of(self.peft).named_parameters(remove_duplicate=False)
        named = {_PREFIX + name: parameter for name, parameter in parameters}
        return get_peft_model_state_dict(self.peft, state_dict=named, save_embedding_layers=False)

    def settings_files(self) -> dict[str, bytes]:
        """What adapter_config.json holds, by file name."""
        written = self.peft.peft_config[_NAME].to_dict() | {"inference_mode": True}
        lists = {name: sorted(value) for name, value in written.items() if isinstance(value, set)}
        return {ADAPTER_CONFIG: json.dumps(written | lists, indent=2, sort_keys=True).encode()}

    def save(self, folder: Path) -> None:
        """Writes both files, as plain peft loads them."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self.tensors().items()}
        save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
        for name, text in self.settings_files().items():
            (folder / name).write_bytes(text)

    def load(self, folder: Path, *, place: str) -> None:
        """Takes the parameters of a folder; raises ConfigError unless they are just those of this adapter."""
        read = _read_tensors(folder / TENSORS_FILE, place)
        expected = {name: tensor.shape for name, tensor in self.tensors().items()}
        differences = {
            "are missing": expected.keys() - read.keys(),
            "have no place in the adapter": read.keys() - expected.keys(),
            "have another shape": {
                name for name in expected.keys() & read.keys() if expected[name] != read[name].shape
            },
            "hold values that are not finite": {
                name for name, tensor in read.items() if not bool(torch.isfinite(tensor).all())
            },
        }
        remedy = "use an intact adapter and the base it was trained on"
        problems = [
            problem(place, f"{folder / TENSORS_FILE}: {len(names)} parameters {what}: {min(names)}", remedy)
            for what, names in differences.items()
            if names
        ]
        if problems:
            raise ConfigError(problems)
        set_peft_model_state_dict(self.peft, read)


def start_adapter(
    model: PreTrainedModel,
    adapter: AdapterConfig,
    *,
    base_name: str,
    token_ids: Sequence[int] = (),
    seed: int = 42,
) -> Adapter:
    """Puts a fresh adapter, drawn with the seed, into a model, all of whose own parameters are frozen.

    At first it changes nothing: one of its two matrices is zero (LoRA: Hu et al. 2021; DoRA: Liu et al. 2024,
    rsLoRA: Kalajdzievski 2023).
    base_name: what the adapter's config names as its base. token_ids: whose rows are trained.
    Raises ConfigError where the named modules are not there or cannot be adapted.
    """
    whole = tuple(adapter.modules_to_save or ())
    problems = _find_misnamed(model, adapter)
    if problems:
        raise ConfigError(problems)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=adapter.r,
        lora_alpha=cast(int, adapter.alpha),  # peft takes any number
        use_rslora=adapter.rslora,
        use_dora=adapter.type == "dora",
        target_modules=list(adapter.target_modules or adaptable_layers(model)),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        modules_to_save=list(whole) or None,
        trainable_token_indices=_rows_by_module(model, token_ids, whole),
        ensure_weight_tying=bool(whole) and _is_tied(model),
    )
    return _put_in(model, config, seed=seed, dropout=adapter.lora_dropout)


def read_adapter(model: PreTrainedModel, folder: Path, *, place: str) -> Adapter:
    """Puts the adapter of a folder into its base. Raises ConfigError where it does not fit or is not read."""
    config = read_adapter_config(folder, place=place)
    wanted = _num_rows(model, config.trainable_token_indices, folder / TENSORS_FILE, place)
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    if wanted > embedding.num_embeddings:
        with quiet_transformers():
            model.resize_token_embeddings(wanted, mean_resizing=False)
    try:
        adapter = _put_in(model, config, seed=0, dropout=0.0)
    except (ValueError, TypeError, KeyError) as error:
        fact = f"{folder}: {first_line(error)}"
        raise ConfigError(problem(place, fact, "use the base that it was trained on")) from error
    adapter.load(folder, place=place)
    return adapter


def read_adapter_config(folder: Path, *, place: str) -> LoraConfig:
    """What adapter_config.json of a folder says, read as data: nothing that it names is imported.

    Raises ConfigError for any kind of adapter but LoRA, rsLoRA and DoRA.
    """
    path = folder / ADAPTER_CONFIG
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        fact = f"{path}: {getattr(error, 'strerror', None) or 'not JSON'}"
        raise ConfigError(problem(place, fact, "use an intact copy")) from error
    kind = written.get("peft_type") if isinstance(written, dict) else None
    base = written.get("base_model_name_or_path") if isinstance(written, dict) else None
    if kind != "LORA" or not isinstance(base, str) or not base:
        fact = f"{path}: peft_type {kind!r}, base {base!r}"
        raise ConfigError(problem(place, fact, "use an adapter of LoRA or DoRA that names its base"))
    usual = LoraConfig(base_model_name_or_path=base)
    strange = [
        field.name
        for field in fields(LoraConfig)
        if field.name in written.keys() - {*_READ_FIELDS, *_WITHOUT_EFFECT}
        and written[field.name] not in (getattr(usual, field.name), None, {}, False)
    ]
    if strange:
        fact = f"{path}: {', '.join(strange)}: not what finetooth computes"
        raise ConfigError(problem(place, fact, "merge the adapter with the tool that made it"))
    chosen = {name: written[name] for name in _READ_FIELDS if name in written}
    try:
        return LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=base, **chosen)
    except (ValueError, TypeError) as error:
        raise ConfigError(problem(place, f"{path}: {first_line(error)}", "use an intact copy")) from error


def adaptable_layers(model: PreTrainedModel) -> list[str]:
    """Last names of all linear layers but the head, in alphabetical order."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def _put_in(model: PreTrainedModel, config: LoraConfig, *, seed: int, dropout: float) -> Adapter:
    with deterministic_seed(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells of choices that are made here knowingly
        peft = PeftModelForCausalLM(model, config, adapter_name=_NAME)
    keyed = KeyedDropout(dropout)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for number, layer in enumerate(layers):
        layer.lora_dropout[_NAME] = AdapterDropout(keyed, number)
    return Adapter(peft, keyed)


def _base_of(peft: PeftModel) -> PreTrainedModel:
    return cast(PreTrainedModel, peft.get_base_model())


def _find_misnamed(model: PreTrainedModel, adapter: AdapterConfig) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    layers = adaptable_layers(model)
    adapted = adapter.target_modules or layers
    problems: list[str] = []
    for name in adapter.target_modules or ():
        if name.rpartition(".")[2] not in layers or not any(_ends_with(full, name) for full in names):
            fact, remedy = f"{name}: no linear layer before the head", f"the model has {', '.join(layers)}"
            problems.append(problem("adapter.target_modules", fact, remedy))
    for name in adapter.modules_to_save or ():
        found = [full for full in names if _ends_with(full, name)]
        if not found:
            others = sorted({full.rpartition(".")[2] for full in names if full} - set(layers))
            fact, remedy = f"{name}: no module", f"the model has {', '.join(others)}"
            problems.append(problem("adapter.modules_to_save", fact, remedy))
        elif any(_ends_with(full, layer) for full in found for layer in adapted):
            fact = f"{name}: has an adapter already"
            problems.append(problem("adapter.modules_to_save", fact, "name it in one of the two settings"))
    return problems


def _ends_with(full: str, name: str) -> bool:
    return full == name or full.endswith(f".{name}")


def _rows_by_module(
    model: PreTrainedModel, token_ids: Sequence[int], whole: Sequence[str]
) -> dict[str, list[int]] | None:
    """The trained rows of embedding and, where it is another tensor, head; none of what is trained whole."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [embedding] if _is_tied(model) else [embedding, head]
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in modules]
    rows = {name: sorted(token_ids) for name in names if name not in whole and token_ids}
    return rows or None


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    assert head is not None, "load_policy refuses models without a head"
    return model.get_input_embeddings().weight is head.weight


def _num_rows(model: PreTrainedModel, indices: Any, path: Path, place: str) -> int:
    """How many rows embedding and head must have for those that an adapter holds."""
    lists = indices.values() if isinstance(indices, dict) else [indices or []]
    wanted = max((int(number) + 1 for rows in lists for number in rows), default=0)
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    whole = {f"{_PREFIX}{name}.weight" for name, module in model.named_modules() if module in modules}
    with _opened(path, place) as tensors:
        sizes = [tensors.get_slice(name).get_shape()[0] for name in whole & set(tensors.keys())]
    return max([wanted, *sizes])


def _read_tensors(path: Path, place: str) -> dict[str, torch.Tensor]:
    with _opened(path, place) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no dictionary


@contextlib.contextmanager
def _opened(path: Path, place: str) -> Iterator[Any]:
    """An opened safetensors file; a pickle (adapter_model.bin) is never read."""
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        fact = f"{path}: {first_line(error) if path.is_file() else 'no such file'}"
        raise ConfigError(problem(place, fact, "use an intact adapter in safetensors")) from error
