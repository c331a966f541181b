"""The worked example of the page says what `init` chooses, and about what memory it takes."""

import re

import numpy as np
import pytest
from tests.conftest import ROOT

from finetooth.base.machine import Gpu, Machine
from finetooth.model.shape import ModelShape
from finetooth.training.first_settings import Preset, Situation, choose_preset, choose_settings

PAGE = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.partition("## Worked example")[2]
GB = 1_000_000_000
SHAPE = ModelShape(
    num_parameters=1_345_323_008, is_fresh=False, positions=4096, vocabulary=32_000, hidden=2048, layers=24,
    query_width=2048, key_width=2048, feed_forward=5504,
)  # fmt: skip
PRESETS: tuple[Preset, Preset] = ("full", "lora")


def machine(gigabytes: int) -> Machine:
    return Machine(512 * GB, 500 * GB, (Gpu("a GPU", gigabytes * GB, gigabytes * GB),))


def told(row: str, preset: Preset) -> list[float]:
    """The numbers in a row of the table."""
    cells = re.search(rf"^\| {re.escape(row)} \| (.*) \| (.*) \|$", EXAMPLE, re.MULTILINE)
    assert cells is not None, row
    cell = cells[1 + PRESETS.index(preset)].replace(",", "")
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", cell)]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_worked_example_is_what_init_chooses(preset: Preset):
    situation = Situation(SHAPE, machine(80), preset, np.full(20_000, 400), 200_000)
    chosen = {choice.key: choice for choice in choose_settings(situation)}
    values = {key: choice.value for key, choice in chosen.items()}
    kept_out = round(200_000 * values["data.dev"])
    assert told("documents trained", preset) == [200_000 - kept_out, kept_out]
    assert told("epochs", preset) == [values["training.num_train_epochs"]]
    assert told("documents per update", preset) == [values["training.global_batch_size"]]
    updates = -(-(200_000 - kept_out) // values["training.global_batch_size"])
    assert told("updates", preset) == [updates]
    assert told("learning rate", preset) == [values["training.learning_rate"]]
    assert told("updates of warm-up", preset) == [round(values["training.warmup_steps"] * updates)]
    assert told("updates between evaluations", preset) == [values["evaluation.every"]]


@pytest.mark.parametrize("preset", PRESETS)
def test_its_memory_is_about_what_is_estimated(preset: Preset):
    situation = Situation(SHAPE, machine(80), preset, np.full(100, 400), 200_000)
    one, many = (situation.needs(preset, tokens).total / GB for tokens in (1, 1001))
    assert told("memory, GB, without a row", preset) == [pytest.approx(one, rel=0.2)]
    assert told("memory, GB, for 1,000 tokens of a row", preset) == [pytest.approx(many - one, rel=0.2)]


def test_on_a_small_gpu_only_an_adapter_fits():
    assert "On 24 GB only LoRA fits" in EXAMPLE
    lengths = np.full(100, 448)
    assert choose_preset(SHAPE, machine(24), lengths, ("full", "lora", "qlora")) == "lora"
    assert choose_preset(SHAPE, machine(80), lengths, ("full", "lora", "qlora")) == "full"
