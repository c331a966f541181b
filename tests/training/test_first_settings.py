"""First settings can be trained whatever the sizes are, follow them, and leave what is given."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.base.machine import Gpu, Machine
from finetooth.config.load import config_of
from finetooth.model.shape import ModelShape
from finetooth.training.first_settings import (
    GIVEN,
    Preset,
    Situation,
    choose_preset,
    choose_settings,
    describe_memory,
)

GB = 1_000_000_000
LAPTOP = Machine(memory=16 * GB, free=12 * GB)
SERVER = Machine(512 * GB, 500 * GB, (Gpu("NVIDIA H100", 80 * GB, 79 * GB),))
SMALL = ModelShape(
    num_parameters=135_000_000, is_fresh=False, positions=8192, vocabulary=49_152, hidden=576, layers=30,
    query_width=576, key_width=192, feed_forward=1536,
)  # fmt: skip
LARGE = dataclasses.replace(
    SMALL, num_parameters=8_000_000_000, vocabulary=128_256, hidden=4096, layers=32, query_width=4096,
    key_width=1024, feed_forward=14_336,
)  # fmt: skip
ALL: tuple[Preset, ...] = ("full", "lora", "qlora")


def situation(
    shape: ModelShape = SMALL,
    *,
    machine: Machine = SERVER,
    preset: Preset = "full",
    lengths: Any = (100, 200, 300),
    num_documents: int = 1000,
    **more: Any,
) -> Situation:
    return Situation(shape, machine, preset, np.asarray(lengths), num_documents, **more)


def chosen(given: Situation) -> dict[str, Any]:
    return {choice.key: choice.value for choice in choose_settings(given)}


def reasons(given: Situation) -> dict[str, str]:
    return {choice.key: choice.reason for choice in choose_settings(given)}


@given(
    lengths=st.lists(st.integers(2, 100_000), min_size=1, max_size=20),
    num_documents=st.integers(1, 10**8),
    positions=st.none() | st.integers(2, 10**6),
    num_parameters=st.integers(1000, 10**12),
    preset=st.sampled_from(ALL),
    machine=st.sampled_from([LAPTOP, SERVER, Machine(GB, 1)]),
    is_text=st.booleans(),
)
def test_they_are_settings_that_a_run_may_have(
    lengths: list[int],
    num_documents: int,
    positions: int | None,
    num_parameters: int,
    preset: Preset,
    machine: Machine,
    is_text: bool,
):
    shape = dataclasses.replace(SMALL, positions=positions, num_parameters=num_parameters)
    of = situation(
        shape, machine=machine, preset=preset, lengths=lengths, num_documents=num_documents, is_text=is_text
    )
    config = config_of({"model.path": "base", "data.train": "t", "output_dir": "o", **chosen(of)})
    assert config.data.max_length <= (positions or 200_000)
    assert all(reasons(of).values())


def test_a_small_set_is_seen_in_a_hundred_updates_and_a_large_one_in_large_steps():
    for num_documents, epochs, batch in ((1000, 3, 16), (20_000, 2, 128), (200_000, 1, 128)):
        values = chosen(situation(num_documents=num_documents))
        assert (values["training.num_train_epochs"], values["training.global_batch_size"]) == (epochs, batch)
    assert reasons(situation())["training.global_batch_size"] == "documents per update, so 180 updates in all"
    assert chosen(situation(preset="lora", num_documents=200_000))["training.global_batch_size"] == 32


def test_the_rate_falls_with_the_size_of_the_model_and_is_ten_times_higher_for_adapters():
    rates = [
        chosen(situation(shape, preset=preset))["training.learning_rate"]
        for shape in (SMALL, LARGE)
        for preset in ("full", "lora")
    ]
    assert rates == [8e-5, 8e-4, 1e-5, 1e-4]
    fresh = chosen(situation(dataclasses.replace(SMALL, is_fresh=True)))
    assert fresh["training.learning_rate"] == 6e-4
    assert fresh["training.min_learning_rate"] == 6e-5


def test_the_longest_document_decides_unless_model_or_memory_hold_less():
    assert chosen(situation(lengths=[487]))["data.max_length"] == 512
    of_model = situation(lengths=[487, 9000])
    assert chosen(of_model)["data.max_length"] == 8192
    assert reasons(of_model)["data.max_length"] == "what the model holds; 1 of 2 are longer, left out"
    of_memory = situation(machine=LAPTOP, lengths=[487, 8000])
    assert 1024 < chosen(of_memory)["data.max_length"] < 8000
    assert reasons(of_memory)["data.max_length"] == "what memory holds; 1 of 2 are longer, left out"
    of_text = situation(lengths=[9000], is_text=True)
    assert reasons(of_text)["data.max_length"] == "what the model holds; longer texts are divided"


def test_the_first_preset_that_memory_holds_is_chosen():
    lengths = np.array([2000])
    assert choose_preset(SMALL, SERVER, lengths, ALL) == "full"
    assert choose_preset(LARGE, SERVER, lengths, ALL) == "lora"
    one_small = Machine(GB, GB, (Gpu("NVIDIA L4", 24 * GB, 23 * GB),))
    assert choose_preset(LARGE, one_small, lengths, ALL) == "qlora"
    assert choose_preset(LARGE, LAPTOP, lengths, ("full", "lora")) == "lora"  # nothing fits: the least


def test_what_is_given_stays_and_the_rest_follows_it():
    given = {"training.num_train_epochs": 1, "training.global_batch_size": 2, "data.dev": "dev.jsonl"}
    of = situation(settled=given)
    values = chosen(of)
    assert {key: values[key] for key in given} == given
    assert reasons(of)["training.num_train_epochs"] == reasons(of)["data.dev"] == GIVEN
    assert reasons(of)["training.global_batch_size"] == "documents per update, so 500 updates in all"
    assert values["evaluation.every"] == 50


def test_a_budget_of_tokens_stands_for_the_documents_per_update():
    values = chosen(situation(settled={"training.global_batch_tokens": 2000}))
    assert "training.global_batch_size" not in values
    assert values["evaluation.every"] == 20  # 300 updates of ten documents, less those of dev


def test_few_documents_are_all_trained():
    assert chosen(situation(num_documents=19))["data.dev"] is None
    assert chosen(situation(num_documents=20))["data.dev"] == 0.2


def test_memory_is_described_in_a_sentence():
    sentence = describe_memory(situation(preset="qlora"), 4096)
    assert sentence.startswith("Matrices beside the model, held in 4 bits, are trained: about ")
    assert sentence.endswith(" of 79.0 GB that are free")


def test_the_worked_example_of_the_documents():
    """docs/starting.md: 200,000 records of 400 tokens, a model of 1.3 billion parameters, a GPU of 80 GB."""
    shape = dataclasses.replace(
        SMALL, num_parameters=1_300_000_000, vocabulary=50_304, hidden=2048, layers=24, query_width=2048,
        key_width=2048, feed_forward=5504,
    )  # fmt: skip
    of = situation(shape, lengths=[400], num_documents=200_000)
    assert choose_preset(shape, SERVER, np.array([400]), ALL) == "full"
    values, said = chosen(of), reasons(of)
    assert values["training.learning_rate"] == 2e-5
    assert said["training.num_train_epochs"] == "passes over about 199,000 documents, which are many"
    assert said["training.global_batch_size"] == "documents per update, so 1,555 updates in all"
    assert said["training.warmup_steps"] == "a share: it rises over the first 47 updates"
    parts = of.needs("full", 1000)
    assert parts.parameters + parts.gradients + parts.optimizer == pytest.approx(21e9, rel=0.02)
    assert parts.activations == pytest.approx(2.9e9, rel=0.1)
    lora = situation(shape, preset="lora", lengths=[400], num_documents=200_000)
    assert chosen(lora)["training.learning_rate"] == 2e-4
    assert reasons(lora)["training.global_batch_size"] == "documents per update, so 6,219 updates in all"
