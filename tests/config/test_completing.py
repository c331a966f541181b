"""What is offered for a setting is what the command line takes."""

import pytest

from finetooth.config.checks import is_allowed, json_schema_of
from finetooth.config.completing import choices_of, completions
from finetooth.config.keys import SETTINGS, find_setting
from finetooth.config.yaml_lines import read_value


def test_every_key_that_is_offered_means_one_setting_and_each_setting_is_offered():
    bare = [offer for offer in completions("") if offer.endswith("=")]
    sections = [offer for offer in completions("") if not offer.endswith("=")]
    dotted = [offer for section in sections for offer in completions(section)]
    assert {find_setting(offer.removesuffix("=")) for offer in (*bare, *dotted)} == set(SETTINGS)
    assert len(bare) + len(sections) == len(completions("")) == len(set(completions("")))


def test_every_value_that_the_schema_names_is_offered():
    for key, setting in SETTINGS.items():
        schemas = json_schema_of(setting.kind).get("anyOf", [json_schema_of(setting.kind)])
        named = [str(value) for schema in schemas for value in schema.get("enum", [])]
        named += [str(schema["const"]) for schema in schemas if "const" in schema]
        assert set(named) <= set(choices_of(key)), key


def test_every_value_that_is_offered_may_be_set():
    given = [f"{key}={choice}" for key in SETTINGS for choice in choices_of(key)]
    assert len(given) > 50
    for override in given:
        key, _, choice = override.partition("=")
        assert is_allowed(SETTINGS[key].kind, read_value(choice)), override


@pytest.mark.parametrize(
    ("word", "offered"),
    [
        ("learning", ["learning_rate="]),
        ("every", []),
        ("evaluation.ev", ["evaluation.every="]),
        ("adapter.type=q", ["adapter.type=qlora"]),
        ("spikes=", ["spikes=true", "spikes=false"]),
        ("packing=", ["packing=true", "packing=false", "packing=auto"]),
        ("lr=", []),
        ("learning_rate=", []),
    ],
)
def test_what_is_offered(word: str, offered: list[str]):
    assert completions(word) == offered
