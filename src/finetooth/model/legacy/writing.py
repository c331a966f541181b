"""Writes a policy in the layout of the checkpoint that its base came from, or as a plain state dict.

The described systems load these files with `load_state_dict` as it is: names and shapes are theirs. States of
an optimiser are not written: theirs belong to groups of parameters that only their own code knows.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel

from finetooth.base.errors import ConfigError, problem
from finetooth.base.torch_files import StoredObject
from finetooth.model.legacy.layouts import WrittenBy, names_of
from finetooth.model.legacy.origin import LegacyOrigin
from finetooth.model.legacy.steps import go_back

Parameters = Mapping[str, torch.Tensor]


def legacy_content(origin: LegacyOrigin, parameters: Parameters, facts: WrittenBy) -> dict[str, Any]:
    """What a checkpoint in the layout of an origin holds.

    parameters: whole tensors under transformers' names.
    Raises ConfigError where a parameter that the layout lacks is not zero.
    """
    layout, settings = origin.layout, dict(origin.settings)
    if layout.vocabulary is not None:
        settings[layout.vocabulary] = origin.num_rows
    return layout.content(_their_tensors(origin, parameters), settings, facts)


def plain_state(model: PreTrainedModel, parameters: Parameters) -> dict[str, torch.Tensor]:
    """The state dict of the model as torch gives it: a shared tensor stands under each of its names."""
    bare = {name: tensor.detach() for name, tensor in parameters.items()}
    names: dict[torch.Tensor, str] = {tensor: name for name, tensor in model.named_parameters()}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        state[name] = bare[names.get(tensor, name)]
    return state


def save_torch_file(path: Path, content: Mapping[str, Any]) -> None:
    """As torch.save; a StoredObject becomes an object of the class that it names, which need not exist."""
    by_name = SimpleNamespace(__name__="pickle", Pickler=_ByNamePickler)
    torch.save(dict(content), path, pickle_module=by_name)


_PythonPickler: Any = vars(pickle)["_Pickler"]  # the one in Python, whose `save` can be extended


class _ByNamePickler(_PythonPickler):
    """Writes GLOBAL "package.module Class", (), NEWOBJ, attributes, BUILD, as any pickler does."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, StoredObject):
            super().save(obj, save_persistent_id)
            return
        module, _, name = obj.name.rpartition(".")
        class_by_name = pickle.GLOBAL + f"{module}\n{name}\n".encode()
        self.write(class_by_name + pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        super().save(obj.attributes)
        self.write(pickle.BUILD)


def _their_tensors(origin: LegacyOrigin, parameters: Parameters) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    left = dict(parameters)
    for group in origin.groups():
        theirs = go_back(group.steps, [left.pop(name) for name in group.ours], origin.sizes)
        own = {id(tensor): tensor.detach().contiguous().clone() for tensor in theirs}
        state |= {name: own[id(tensor)] for name, tensor in zip(group.theirs, theirs, strict=True)}
    for name, tensor in left.items():
        if bool(tensor.any()):
            fact = f"{name} is not zero, and the layout {origin.layout.name} has no place for it"
            raise ConfigError(problem("--to pt", fact, "write --to folder"))
    for constant in origin.layout.constants:
        if constant.pattern in origin.constants:
            tensor = constant.compute(origin.all_settings)
            state |= dict.fromkeys(names_of(constant, origin.sizes), tensor)
    return state
