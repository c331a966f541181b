"""Every recipe is a valid run file, whose learning rate is the one that `init` begins with. No network."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import ROOT

from finetooth.base.machine import Machine
from finetooth.config.load import load_config
from finetooth.model.shape import ModelShape
from finetooth.training.first_settings import Situation, choose_settings

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^## (.*?), ([\d.]+)B.*?^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
MACHINE = Machine(memory=10**12, free=10**12)
SHAPE = ModelShape(
    num_parameters=1, is_fresh=False, positions=8192, vocabulary=1000, hidden=64, layers=2,
    query_width=64, key_width=64, feed_forward=64,
)  # fmt: skip


def test_five_families_have_one():
    families = [family for family, _, _ in RECIPES]
    assert families == ["Qwen3", "Llama 3.1", "Gemma 3", "Mistral", "SmolLM3"]


@pytest.mark.parametrize(("family", "billions", "text"), RECIPES, ids=[family for family, _, _ in RECIPES])
def test_a_recipe_can_be_loaded_and_begins_as_init_would(
    family: str, billions: str, text: str, tmp_path: Path
):
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(tmp_path / "run.yaml")
    shape = dataclasses.replace(SHAPE, num_parameters=int(float(billions) * 1e9))
    preset = config.adapter.type or "full"
    assert preset != "dora"
    first = {
        choice.key: choice.value
        for choice in choose_settings(Situation(shape, MACHINE, preset, np.array([400]), 5_000))
    }
    assert config.training.learning_rate == first["training.learning_rate"], family
    assert config.training.min_learning_rate == first["training.min_learning_rate"]
