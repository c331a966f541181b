"""The flat table of settings."""

import dataclasses

from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.config.settings import REQUIRED, sections_of, settings_of, values_of


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = dataclasses.field(default_factory=Inner)
    note: str = dataclasses.field(default="", compare=False)


def test_settings_are_flattened_in_order_and_notes_left_out():
    table = settings_of(Outer)
    assert list(table) == ["name", "inner.size"]
    assert table["name"].default is REQUIRED
    assert table["name"].is_required
    assert table["inner.size"] == (int, 3)
    assert not table["inner.size"].is_required
    assert sections_of(Outer) == {"inner": Inner}


def test_values_follow_the_dotted_keys():
    assert values_of(Outer("x", Inner(4))) == {"name": "x", "inner.size": 4}


def test_a_config_has_a_value_for_every_setting():
    config = SFTConfig(model=ModelConfig(path="b"), data=DataConfig(train="t"), output_dir="o")
    assert values_of(config).keys() == settings_of(SFTConfig).keys()
