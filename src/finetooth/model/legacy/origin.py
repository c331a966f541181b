"""Where a model came from: the layout and settings of a checkpoint, kept in the model's own config.json.

    "finetooth_legacy": {"layout": "per-head-gpt", "settings": "{\"n_head\": 4, …}", "constants": […]}

So every checkpoint of a run, and what is exported from it, knows the way back, and which parameters are no
part of the layout. transformers keeps the entry and gives it no meaning.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from finetooth.base.errors import ConfigError, problem
from finetooth.config.wording import show_value
from finetooth.model.legacy.known import LAYOUTS
from finetooth.model.legacy.layouts import Group, Layout, Settings, Twin, groups_of
from finetooth.model.legacy.steps import HalfRotary, Sizes

ENTRY = "finetooth_legacy"


@dataclass(frozen=True)
class LegacyOrigin:
    """The checkpoint that a model came from.

    settings:  as the file holds them
    constants: the patterns of those that the file holds
    num_rows:  of the embedding
    """

    layout: Layout
    settings: Settings
    constants: tuple[str, ...]
    num_rows: int

    @cached_property
    def all_settings(self) -> Settings:
        """The settings of the file, with those that it lacks and those that follow from them."""
        known = {**self.layout.defaults, **self.settings, "vocab_size": self.num_rows}
        return {**known, **self.layout.derived(known)}

    @property
    def sizes(self) -> Sizes:
        """The numbers that patterns and steps count by."""
        return self.layout.sizes_of(self.all_settings)

    @property
    def twin(self) -> Twin:
        """The architecture that computes the same."""
        twin = self.layout.twin_of(self.all_settings)
        assert twin is not None, "`checked_origin` refuses a model without one"
        return twin

    def groups(self) -> Iterator[Group]:
        """The rows of the key map, with their patterns filled in."""
        return groups_of(self.twin, self.all_settings, self.sizes)


def checked_origin(
    layout: Layout, settings: Settings, constants: tuple[str, ...], num_rows: int, place: str
) -> LegacyOrigin:
    """An origin whose settings are those of a model that transformers has.

    place: what holds the settings, for messages. Raises ConfigError where something of them is amiss.
    """
    subject = f"{place}: {layout.settings}"
    known = {**layout.defaults, "vocab_size": num_rows, **settings}
    wrong = [
        problem(subject, f"{name} is {show_value(known[name])}" if name in known else f"no {name}", remedy)
        for names, is_right, remedy in (
            (layout.counts, _is_count, "it must be a whole number above 0"),
            (layout.numbers, _is_number, "it must be a number above 0"),
        )
        for name in names
        if not is_right(known.get(name))
    ]
    if wrong:
        raise ConfigError(wrong)
    _require_whole_heads(layout, known, subject)
    origin = LegacyOrigin(layout, settings, constants, num_rows)
    if absent := sorted(_names_used(layout) - origin.all_settings.keys()):
        raise ConfigError(problem(subject, f"no {', '.join(absent)}", "use an intact copy"))
    if layout.twin_of(origin.all_settings) is None:
        chosen = dict.fromkeys(name for twin in layout.twins for name in twin.needs)
        parts = ", ".join(f"{name} {str(origin.all_settings[name])[:30]}" for name in chosen)
        fact = f"no architecture of transformers that finetooth supports computes {parts} together"
        raise ConfigError(problem(place, fact, "use a base model with another architecture"))
    features = origin.all_settings[layout.width] // origin.sizes.heads
    if features % 2 and any(HalfRotary() in entry.steps for entry in origin.twin.entries):
        fact = f"heads of {features} features cannot rotate in pairs"
        raise ConfigError(problem(subject, fact, "use an intact copy"))
    return origin


def remember(config: Any, origin: LegacyOrigin) -> None:
    """Writes an origin into a transformers config."""
    settings = json.dumps(origin.settings)  # as text, which no reader of config.json takes for its own
    entry = {"layout": origin.layout.name, "settings": settings, "constants": list(origin.constants)}
    setattr(config, ENTRY, entry)


def origin_of(config: Any, place: str = "config.json") -> LegacyOrigin | None:
    """The origin that a transformers config remembers; None where its model came from no such checkpoint.

    Raises ConfigError for an entry that finetooth did not write.
    """
    entry = getattr(config, ENTRY, None)
    if entry is None:
        return None
    fact, remedy = f"{ENTRY} in config.json is not what finetooth writes", "leave the entry out"
    try:
        layout = next(layout for layout in LAYOUTS if layout.name == entry["layout"])
        settings, constants = json.loads(entry["settings"]), tuple(entry["constants"])
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        raise ConfigError(problem(place, fact, remedy)) from error
    patterns = {constant.pattern for constant in layout.constants}
    if not isinstance(settings, dict) or not patterns.issuperset(constants):
        raise ConfigError(problem(place, fact, remedy))
    origin = checked_origin(layout, settings, constants, config.vocab_size, place)
    sizes = origin.sizes.layers, origin.sizes.heads
    is_of_config = (config.num_hidden_layers, config.num_attention_heads) == sizes
    if origin.twin.model_type != config.model_type or not is_of_config:
        raise ConfigError(problem(place, fact, remedy))
    return origin


def freeze_absent(model: PreTrainedModel, place: str) -> None:
    """Keeps the parameters that the layout of a model's origin lacks as they are, which is zero.

    They are biases: GPT-2 of transformers always has them. Raises ConfigError where one is not zero.
    """
    origin = origin_of(model.config, place)
    if origin is None:
        return
    held = {name for group in origin.groups() for name in group.ours}
    for name, parameter in model.named_parameters():
        if name not in held:
            if bool(parameter.any()):
                fact = f"{name} is not zero, and the layout {origin.layout.name} has no place for it"
                remedy = f"take {ENTRY} out of config.json, which gives up the way back"
                raise ConfigError(problem(place, fact, remedy))
            parameter.requires_grad_(False)


def _names_used(layout: Layout) -> set[str]:
    """The settings that twins and key maps ask for."""
    return {
        name
        for twin in layout.twins
        for names in (twin.needs, twin.fields.values(), *(entry.needs for entry in twin.entries))
        for name in names
    }


def _require_whole_heads(layout: Layout, settings: Settings, subject: str) -> None:
    width, heads, kv_heads = (settings[name] for name in (layout.width, layout.heads, layout.kv_heads))
    if width % heads:
        fact = f"{width} features cannot be shared out among {heads} heads"
        raise ConfigError(problem(subject, fact, "use an intact copy"))
    if heads % kv_heads:
        fact = f"{heads} heads cannot share {kv_heads} keys"
        raise ConfigError(problem(subject, fact, "use an intact copy"))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
