"""A policy whose parameters are divided among the ranks from the start: each reads only its own part.

The model is laid out without memory, divided, and then filled from the slices of the files that this rank
keeps. So no process ever holds the whole model, as `load_policy` does before it is divided.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import Ranks
from finetooth.base.errors import ConfigError
from finetooth.batching.collate import collate
from finetooth.config.schema import ParallelConfig, SFTConfig
from finetooth.data.records import DocumentSource
from finetooth.data.templates.template import Template
from finetooth.model.folders import EmptyModel, broken_values, lay_out_folder
from finetooth.model.isolation import settle_packing
from finetooth.model.legacy.origin import origin_of
from finetooth.model.load import refuse_what_is_not_computed
from finetooth.model.policy import PolicyModel
from finetooth.model.start import TokensAtStart
from finetooth.model.vocabulary import find_untrained
from finetooth.training.dealt_files import differs_on_disk
from finetooth.training.parallel import shard
from finetooth.training.tensor_files import read_like


def start_sharded(
    config: SFTConfig, template: Template, *, checkpoint: Path | None, ranks: Ranks, devices: DeviceManager
) -> tuple[PolicyModel, TokensAtStart] | None:
    """As `start_policy` or, with a checkpoint, `resume_policy`; None where these have to load all of it.

    That is where nothing is to be divided, fresh parameters are drawn or come from a .pt file, an adapter is
    trained, the template added tokens, or names or shapes in the files are not those in memory. Every rank
    must ask.
    Raises ConfigError for a model that is absent, not finite, or not computed exactly by finetooth.
    """
    name = config.model.path if checkpoint is None else str(checkpoint)
    is_divided = ranks.world_size > 1 and config.parallel.shard is not None
    is_grown = checkpoint is None and bool(template.added_tokens)
    is_folder = name is not None and not Path(name).expanduser().is_file()
    if name is None or not is_folder or not is_divided or is_grown or config.adapter.type is not None:
        return None
    policy = read_sharded(name, ranks=ranks, parallel=config.parallel, devices=devices)
    if policy is None:
        return None
    with whole_outside_layers(policy, devices):
        must_pack = config.training.packing is True
        settle_packing(policy, devices=devices, place="model.path", must_pack=must_pack)
        untrained = find_untrained(policy, template) if checkpoint is None else ()
    return policy, TokensAtStart((), untrained)


def read_sharded(
    name: str, *, ranks: Ranks, parallel: ParallelConfig, devices: DeviceManager
) -> PolicyModel | None:
    """The policy of a folder or hub name, divided and filled; None where its files hold other tensors."""
    place = "model.path"
    empty = lay_out_folder(name, place, dtype=devices.parameter_dtype)
    refuse_what_is_not_computed(empty.model, place)
    policy = PolicyModel(empty.model)
    comes_from_pt = origin_of(empty.model.config, place) is not None  # some of its parameters are not trained
    if comes_from_pt or differs_on_disk(policy) or not _is_stored_as_it_is(empty):
        return None
    shard(policy, ranks, parallel, devices)
    _fill(policy, empty.files, devices.device)
    broken = [name for name, tensor in policy.model.named_parameters() if not _is_finite(tensor)]
    everywhere = {name for text in ranks.texts(json.dumps(broken)) for name in json.loads(text)}
    if everywhere:
        raise ConfigError(broken_values(empty.folder, sorted(everywhere), place))
    return policy


@contextlib.contextmanager
def whole_outside_layers(policy: PolicyModel, devices: DeviceManager) -> Iterator[None]:
    """Within it, every rank holds embedding and head, and a layer while it is computed.

    All ranks must compute the same.
    """
    shared = cast(FSDPModule, policy)
    with torch.no_grad(), devices.autocast():
        # FSDP2 takes the first module that it sees computing for the outermost one.
        policy(collate([()], cast(DocumentSource, None)).to(devices.device))
    shared.unshard()
    try:
        yield
    finally:
        shared.reshard()


def _is_stored_as_it_is(empty: EmptyModel) -> bool:
    """Whether the files hold exactly the tensors of the model, of tied ones at least one."""
    stored: dict[str, tuple[int, ...]] = {}
    for file in empty.files:
        with safe_open(file, framework="pt") as opened:
            stored |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    wanted = _tensors(empty.model)
    if any(name not in wanted or shape != tuple(wanted[name].shape) for name, shape in stored.items()):
        return False
    reached = {id(wanted[name]) for name in stored}
    return all(id(tensor) in reached for tensor in wanted.values())


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, tied ones under each of their names, and the buffers that are saved."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}


def _fill(policy: PolicyModel, files: list[Path], device: torch.device) -> None:
    wanted = _tensors(policy.model)
    read: dict[int, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no dictionary
                read[id(wanted[name])] = _read(opened.get_slice(name), wanted[name], device)
    filled: Mapping[str, Any] = {name: read[id(tensor)] for name, tensor in wanted.items()}
    policy.model.load_state_dict(filled, assign=True)


def _read(part: Any, wanted: torch.Tensor, device: torch.device) -> torch.Tensor:
    tensor = read_like(part, wanted, device=device, dtype=wanted.dtype)
    return nn.Parameter(tensor, wanted.requires_grad) if isinstance(wanted, nn.Parameter) else tensor


def _is_finite(tensor: torch.Tensor) -> bool:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(torch.isfinite(own).all())
