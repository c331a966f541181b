"""A config made in Python is held to the same rules as a run file."""

import dataclasses

import pytest

from finetooth.base.errors import ConfigError
from finetooth.config.schema import DataConfig, EvaluationConfig, ModelConfig, SFTConfig, TrainingConfig


def make_config(**sections: object) -> SFTConfig:
    values = {"model": ModelConfig(path="base"), "data": DataConfig(train="train.jsonl"), "output_dir": "run"}
    return SFTConfig(**{**values, **sections})


def test_the_defaults_are_valid():
    config = make_config()
    assert config.training == TrainingConfig()
    assert config.training.learning_rate == 2e-5
    assert config.origins == {}


def test_all_mistakes_of_a_config_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        make_config(
            model=ModelConfig(),
            data=DataConfig(train="train.jsonl", dev=1.5, max_length=20_000),
            training=TrainingConfig(learning_rate="1e-4", seed=True),
            output_dir="",
        )
    assert caught.value.problems == [
        "SFTConfig: data.dev: found the number 1.5; write a number above 0 and below 1, "
        "text, a list that is not empty or null",
        "SFTConfig: training.learning_rate: found the text '1e-4'; write a number above 0 without quotes",
        "SFTConfig: training.seed: found true; write a whole number at least 0 and at most 4294967295",
        "SFTConfig: output_dir: found empty text; write text",
        "SFTConfig: model: neither model.path nor model.from_config is given; "
        "name a base model's folder as model.path",
        "SFTConfig: training.row_tokens (16384) is below data.max_length (20000); "
        "raise training.row_tokens or lower data.max_length",
    ]


def test_a_section_of_another_type_is_refused():
    with pytest.raises(ConfigError) as caught:
        make_config(model={"path": "base"}, training=None)
    assert caught.value.problems == [
        "SFTConfig: model: found a value of type dict; give a ModelConfig",
        "SFTConfig: training: found a value of type NoneType; give a TrainingConfig",
    ]


def test_replacing_a_section_checks_again():
    config = make_config()
    with pytest.raises(ConfigError):
        dataclasses.replace(config, evaluation=EvaluationConfig(every=-1))


def test_origins_do_not_make_configs_differ():
    assert make_config(origins={"output_dir": "run.yaml:1"}) == make_config()
