"""The settings of a config class as one flat table, from dotted key to type and default."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, get_type_hints


class Setting(NamedTuple):
    """One setting: its annotated type, and its default (`REQUIRED` where there is none)."""

    kind: Any
    default: Any

    @property
    def is_required(self) -> bool:
        """Whether the setting must be given."""
        return self.default is REQUIRED


REQUIRED = object()


@cache
def settings_of(config_class: type) -> Mapping[str, Setting]:
    """The table of all settings, in the order of their definition.

    >>> from finetooth.config.schema import SFTConfig
    >>> settings_of(SFTConfig)["training.max_steps"].default is None
    True
    """
    table: dict[str, Setting] = {}
    kinds = get_type_hints(config_class, include_extras=True)
    for field in dataclasses.fields(config_class):
        if not field.compare:
            continue
        kind = kinds[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            inner = settings_of(kind)
            table.update({f"{field.name}.{name}": setting for name, setting in inner.items()})
        else:
            table[field.name] = Setting(kind, _default_of(field))
    return table


@cache
def sections_of(config_class: type) -> Mapping[str, type]:
    """The sections by name, each with its class."""
    kinds = get_type_hints(config_class)
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }


def values_of(config: object) -> dict[str, object]:
    """Every value of a config, by dotted key."""
    return {key: _follow(config, key) for key in settings_of(type(config))}


def _follow(config: object, key: str) -> object:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _default_of(field: dataclasses.Field[Any]) -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED
