"""Updates: a step's rows are laid out while the step before is computed."""

from pathlib import Path
from typing import Any

import pytest
from tests.documents import Documents, random_documents, small_policy
from tests.training.test_trainer import make_config

from finetooth.data.records import Document
from finetooth.training import updates
from finetooth.training.trainer import SFTTrainer


class Noting(Documents):
    """Documents that note when each is read."""

    def __init__(self, documents: Documents, noted: list[Any]):
        super().__init__(documents.documents)
        self.noted = noted

    def document(self, number: int, /) -> Document:
        self.noted.append(number)
        return super().document(number)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Begin and end of every step, among whatever else a test notes."""
    noted: list[Any] = []
    train_step = updates.train_step

    def noting(*arguments: Any, place: str, **options: Any):
        noted.append(place)
        result = train_step(*arguments, place=place, **options)
        noted.append("updated")
        return result

    monkeypatch.setattr(updates, "train_step", noting)
    return noted


def test_a_step_is_read_once_while_the_one_before_is_computed(tmp_path: Path, noted: list[Any]):
    config = make_config(tmp_path, num_train_epochs=1, global_batch_size=2)
    trainer = SFTTrainer(config, policy=small_policy(), train=Noting(random_documents(6), noted))
    trainer.updates.rehearse(first=1)
    noted.clear()
    first, second, third = trainer.schedule.steps()
    for step in (first, second, third):
        trainer.updates.train(step)
    read = [step.documents.tolist() for step in (first, second, third)]
    in_place = [sorted(read[0]), "step 1", sorted(read[1]), "updated", "step 2", sorted(read[2]), "updated"]
    assert grouped(noted) == [*in_place, "step 3", "updated"]


def grouped(noted: list[Any]) -> list[Any]:
    """Numbers that follow one another as one sorted list."""
    found: list[Any] = []
    for each in noted:
        if isinstance(each, str):
            found.append(each)
        elif found and isinstance(found[-1], list):
            found[-1] = sorted([*found[-1], each])
        else:
            found.append([each])
    return found


def test_another_step_than_the_next_is_laid_out_anew(tmp_path: Path):
    """The negative control of reading ahead: steps out of their order train what they always train."""
    config = make_config(
        tmp_path, num_train_epochs=1, global_batch_size=2, learning_rate=1e-30, min_learning_rate=0.0
    )
    trainer = SFTTrainer(config, policy=small_policy(), train=random_documents(6))
    steps = list(trainer.schedule.steps())
    forwards = [trainer.updates.train(step).loss for step in steps]
    backwards = [trainer.updates.train(step).loss for step in reversed(steps)]
    assert backwards == forwards[::-1]
    assert len(set(forwards)) == 3
