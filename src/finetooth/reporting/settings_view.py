"""The settings of runs as they are shown: each with its value and the place where it was set."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from finetooth.config.keys import SETTINGS
from finetooth.config.settings import values_of
from finetooth.reporting.run_reading import Run

# Where a run reads and writes does not decide what it learns.
_PLACES = ("output_dir", "data.cache_dir")


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """One setting; is_default: whether it has the value that it has where nothing is written."""

    name: str
    value: str
    origin: str
    is_default: bool


def settings_by_section(run: Run) -> list[tuple[str, list[ShownSetting]]]:
    """Every setting of a run, section by section; those outside of one come first."""
    sections: dict[str, list[ShownSetting]] = {"": []}
    for key, value in values_of(run.config).items():
        section, _, name = key.rpartition(".")
        is_default = value == SETTINGS[key].default
        origin = run.origins.get(key, "not told")
        sections.setdefault(section, []).append(ShownSetting(name, shown_value(value), origin, is_default))
    return list(sections.items())


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Key and values of each setting that is not the same in all runs; places are left out."""
    tables = [values_of(run.config) for run in runs]
    return [
        (key, [shown_value(table[key]) for table in tables])
        for key in SETTINGS
        if key not in _PLACES and any(table[key] != tables[0][key] for table in tables)
    ]


def shown_value(value: object) -> str:
    """A value as run.yaml may hold it.

    >>> shown_value("a b"), shown_value(5e-05), shown_value(None), shown_value([1, "x"])
    ('a b', '5e-05', 'null', '[1, "x"]')
    """
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
