"""Garbage is collected between steps and never within them; cycles do not pile up."""

import gc
import weakref
from pathlib import Path

import pytest
from tests.documents import random_documents, small_policy
from tests.training.test_trainer import make_config

from finetooth.training import trainer as trainer_module
from finetooth.training.garbage import STEPS_BETWEEN, collecting_between_steps
from finetooth.training.trainer import SFTTrainer
from finetooth.training.updates import Updates


class Cycle:
    """What only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def abandoned() -> "weakref.ref[Cycle]":
    return weakref.ref(Cycle())


def test_garbage_is_collected_when_asked_and_not_before():
    with collecting_between_steps() as collect:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 1000
        cycle = abandoned()
        many = [Cycle() for _ in range(5000)]  # which would start a collection
        assert cycle() is not None
        collect()
        assert cycle() is None
        assert many[0].itself is many[0]
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_the_collector_is_restored_behind_an_error_and_left_as_it_was():
    with pytest.raises(ZeroDivisionError), collecting_between_steps():
        raise ZeroDivisionError
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)
    gc.disable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    try:
        with collecting_between_steps():
            assert gc.get_freeze_count() == frozen
        assert (gc.isenabled(), gc.get_freeze_count()) == (False, frozen)
    finally:
        gc.unfreeze()
        gc.enable()


def cycles_left(folder: Path, monkeypatch: pytest.MonkeyPatch, *, num_steps: int) -> int:
    """The most cycles that are there at once in a run each of whose steps leaves one."""
    left: list[weakref.ref[Cycle]] = []
    most = 0
    train = Updates.train

    def leaving(self: Updates, step: object) -> object:
        nonlocal most
        assert not gc.isenabled()
        left.append(abandoned())
        most = max(most, sum(cycle() is not None for cycle in left))
        return train(self, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Updates, "train", leaving)
    config = make_config(folder, max_steps=num_steps)
    config = trainer_module.replace(config, checkpoints=trainer_module.replace(config.checkpoints, every=0))
    SFTTrainer(config, policy=small_policy(), train=random_documents(6, longest=6)).train()
    assert gc.isenabled()
    return most


def test_cycles_do_not_pile_up_over_three_hundred_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cycles_left(tmp_path, monkeypatch, num_steps=300) <= STEPS_BETWEEN


def test_without_the_regular_collections_they_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    monkeypatch.setattr(trainer_module, "STEPS_BETWEEN", 10**9)
    assert cycles_left(tmp_path, monkeypatch, num_steps=150) == 150
