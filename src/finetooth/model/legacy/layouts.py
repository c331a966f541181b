"""What a layout of checkpoints is: where a file holds what, and what its tensors are in transformers.

A layout is a value, a table in a file of its own; `known.py` lists them. Patterns of names hold `{layer}` and
`{head}`:

    Entry("blocks.{layer}.attn.c_attn.weight", "transformer.h.{layer}.attn.c_attn.weight", (Transpose(),))
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from finetooth.model.legacy.steps import Sizes, Step

Settings = Mapping[str, Any]
Needs = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a key map: tensors of the file, and those of transformers that they are.

    theirs, ours: patterns of names; several where one tensor is several of the other layout
    steps:        from theirs to ours
    needs:        the values of settings with which the row counts
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    steps: tuple[Step, ...] = ()
    needs: Needs = field(default_factory=dict[str, tuple[Any, ...]])


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that the described system computes from its settings and yet saves; no parameter.

    A file may lack it. compute: the tensor, from the settings.
    """

    pattern: str
    compute: Callable[[Settings], torch.Tensor]
    needs: Needs = field(default_factory=dict[str, tuple[Any, ...]])


@dataclass(frozen=True, slots=True)
class Twin:
    """An architecture of transformers that computes what a model with these settings computes.

    needs:  the values of settings with which it does
    fields: fields of its config.json, by the setting that gives their value
    fixed:  fields of its config.json that are always the same
    """

    model_type: str
    needs: Needs
    fields: Mapping[str, str]
    fixed: Mapping[str, Any]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """An entry with its patterns filled in: names of the file, names of transformers, and the way between."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What one system's checkpoints hold.

    state, settings: the keys of a file with the parameters and with the model's settings
    settings_class:  the class of the settings where they are a pickled object
    counts, numbers: settings that must be whole numbers above 0, and numbers above 0
    defaults:        values of settings that a file may lack
    derived:         further settings that follow from the others
    layers, heads, kv_heads: the settings that count them
    width:           the setting with the number of features of a token, a multiple of the heads
    vocabulary:      the setting with the number of rows of the embedding; None where only the tensor tells
    embedding:       the name of that tensor in the file
    file_name:       of a checkpoint that is written, with {step}
    content:         what such a file holds, from parameters, settings and facts of the run
    """

    name: str
    state: str
    settings: str
    counts: tuple[str, ...]
    numbers: tuple[str, ...]
    layers: str
    heads: str
    kv_heads: str
    width: str
    embedding: str
    twins: tuple[Twin, ...]
    file_name: str
    content: Callable[[Mapping[str, torch.Tensor], Any, "WrittenBy"], dict[str, Any]]
    constants: tuple[Constant, ...] = ()
    vocabulary: str | None = "vocab_size"
    settings_class: str | None = None
    defaults: Settings = field(default_factory=dict[str, Any])
    derived: Callable[[Settings], Settings] = lambda settings: {}

    @property
    def names_heads(self) -> bool:
        """Whether heads have tensors of their own."""
        patterns = (name for twin in self.twins for entry in twin.entries for name in _several(entry.theirs))
        return any("{head}" in pattern for pattern in patterns)

    def twin_of(self, settings: Settings) -> Twin | None:
        """The architecture of transformers that computes the same; None where there is none."""
        return next((twin for twin in self.twins if is_met(twin.needs, settings)), None)

    def sizes_of(self, settings: Settings) -> Sizes:
        """The numbers that patterns and steps count by."""
        return Sizes(settings[self.layers], settings[self.heads], settings[self.kv_heads])


@dataclass(frozen=True, slots=True)
class WrittenBy:
    """What a checkpoint of a described system says of the run that wrote it.

    step: updates done; dev_loss: the last one; best_dev_loss: the lowest one; settings: those of the run
    """

    step: int
    dev_loss: float | None
    best_dev_loss: float | None
    settings: Settings


def is_met(needs: Needs, settings: Settings) -> bool:
    """Whether all these settings have one of their values."""
    return all(settings[name] in values for name, values in needs.items())


def groups_of(twin: Twin, settings: Settings, sizes: Sizes) -> Iterator[Group]:
    """The rows of a twin's key map for a model of these sizes, with their patterns filled in."""
    for entry in twin.entries:
        if is_met(entry.needs, settings):
            theirs, ours = _several(entry.theirs), _several(entry.ours)
            for layer in range(sizes.layers if "{layer}" in theirs[0] else 1):
                yield Group(
                    tuple(name for pattern in theirs for name in _filled(pattern, layer, sizes)),
                    tuple(name for pattern in ours for name in _filled(pattern, layer, sizes)),
                    entry.steps,
                )


def names_of(constant: Constant, sizes: Sizes) -> list[str]:
    """The names of a constant in a file, one for each layer and head that holds it."""
    layers = range(sizes.layers if "{layer}" in constant.pattern else 1)
    return [name for layer in layers for name in _filled(constant.pattern, layer, sizes)]


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _filled(pattern: str, layer: int, sizes: Sizes) -> list[str]:
    heads = range(sizes.heads if "{head}" in pattern else 1)
    return [pattern.format(layer=layer, head=head) for head in heads]
