"""Finds the setting a key means, or the words that say why there is none."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from finetooth.config.other_names import NOT_AVAILABLE, NOT_AVAILABLE_PREFIXES, OTHER_NAMES
from finetooth.config.schema import SFTConfig
from finetooth.config.settings import sections_of, settings_of

SETTINGS = settings_of(SFTConfig)
SECTIONS = sections_of(SFTConfig)


class Unknown(NamedTuple):
    """Why a key names no setting."""

    fact: str
    remedy: str


def find_setting(key: str) -> str | Unknown:
    """The dotted key that `key` means on the command line: itself, or the only setting of that name.

    >>> find_setting("learning_rate")
    'training.learning_rate'
    """
    if key in SETTINGS:
        return key
    if key in SECTIONS:
        return Unknown(f"{key}: a section, not a setting", f"write {key}.NAME=VALUE, e.g. {_example_of(key)}")
    namesakes = _settings_named(key)
    if len(namesakes) == 1:
        return namesakes[0]
    if namesakes:
        return Unknown(f"{key}: means several settings", f"write {_either(namesakes)}")
    return explain_unknown(key)


def explain_unknown(key: str) -> Unknown:
    """Words for a key that names no setting where it stands, and what to write instead.

    >>> explain_unknown("training.lerning_rate")
    Unknown(fact='training.lerning_rate: unknown key', remedy="did you mean 'learning_rate'?")
    """
    section, _, name = key.rpartition(".")
    remedy = explain_other_name(name)
    if remedy:
        return Unknown(f"{key}: not a name used here", remedy)
    if _is_not_available(name):
        return Unknown(f"{key}: not available in this version", "leave it out")
    namesakes = _settings_named(name)
    if namesakes:
        return Unknown(f"{key}: stands in the wrong place", f"write {_either(namesakes)}")
    return Unknown(f"{key}: unknown key", _suggest(section if section in SECTIONS else "", name))


def explain_other_name(name: str) -> str | None:
    """What to write instead of a name from another tool; None where the name is from none."""
    return OTHER_NAMES.get(_plain(name))


def is_foreign(name: str) -> bool:
    """Whether a name is one of another tool, or one of a later version."""
    return bool(explain_other_name(name)) or _is_not_available(name)


def _is_not_available(name: str) -> bool:
    return _plain(name) in NOT_AVAILABLE or _plain(name).startswith(NOT_AVAILABLE_PREFIXES)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _settings_named(name: str) -> list[str]:
    return [key for key in SETTINGS if key.rpartition(".")[2] == name]


def _suggest(section: str, name: str) -> str:
    here = {key.rpartition(".")[2]: key for key in SETTINGS if key.rpartition(".")[0] == section}
    if not section:
        here |= {name: name for name in SECTIONS}
    close = _closest(name, list(here))
    if close:
        return f"did you mean '{close}'?"
    close = _closest(name, [key.rpartition(".")[2] for key in SETTINGS])
    if close:
        return f"did you mean {_either(_settings_named(close))}?"
    return f"the keys here are {', '.join(here)}"


def _closest(name: str, candidates: Sequence[str]) -> str | None:
    matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.7)
    return matches[0] if matches else None


def _either(keys: Sequence[str]) -> str:
    keys = [key if "." in key else f"{key} at the top level" for key in keys]
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} or {keys[-1]}"


def _example_of(section: str) -> str:
    first = next(key for key in SETTINGS if key.startswith(f"{section}."))
    return f"{first}=…"
