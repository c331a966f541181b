"""Saving survives interruptions at every operation, full disks, bad disks, and the training beside it."""

import errno
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.documents import random_documents, small_policy
from tests.file_operations import Operation, replay, watched

from finetooth.base import files
from finetooth.base.errors import FinetoothError, NonFiniteError
from finetooth.base.files import check_folder
from finetooth.batching.collate import collate
from finetooth.model.policy import PolicyModel
from finetooth.training import dealt_files
from finetooth.training.checkpoint import CheckpointManager, TrainingState
from finetooth.training.optimizer import create_optimizer


@pytest.fixture(scope="module")
def trained() -> tuple[PolicyModel, torch.optim.Optimizer]:
    policy = small_policy(num_hidden_layers=1)
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    policy(collate([(0, 1)], random_documents(2))).backward()
    optimizer.step()
    return policy, optimizer


Trained = tuple[PolicyModel, torch.optim.Optimizer]


def save(manager: CheckpointManager, step: int, trained: Trained, *, best: int | None = None) -> Path:
    state = TrainingState(next_step=step + 1, identity={"seed": 42}, best_step=best)
    return manager.save(state, policy=trained[0], optimizer=trained[1])


def latest_step(folder: Path) -> int | None:
    """The step a run would go on behind; every checkpoint that can be seen must be intact."""
    for visible in folder.glob("step-*"):
        assert check_folder(visible) == []
    found = CheckpointManager(folder).latest(notify=pytest.fail)
    return None if found is None else found.state.next_step - 1


def two_saved(folder: Path, trained: Trained) -> CheckpointManager:
    """A folder with the checkpoints of steps 1 and 2."""
    manager = CheckpointManager(folder, keep=2)
    save(manager, 1, trained, best=1)
    save(manager, 2, trained, best=2)
    return manager


def recorded_save(folder: Path, trained: Trained) -> list[Operation]:
    """The operations of the save of step 3, which becomes the best and pushes step 1 out."""
    manager = two_saved(folder, trained)
    with watched(folder) as operations:
        save(manager, 3, trained, best=3)
    assert sorted(path.name for path in folder.iterdir()) == ["best", "step-000002", "step-000003"]
    return operations


def test_a_save_does_its_operations_in_this_order(tmp_path: Path, trained: Trained):
    operations = recorded_save(tmp_path, trained)
    kinds = [operation[0] for operation in operations]
    (partial,) = [o[1] for o in operations if o[0] == "mkdir"]
    place = {operation: number for number, operation in enumerate(operations) if operation[0] != "write"}
    renamed = place["rename", partial, "step-000003"]
    manifest = next(o for o in operations if o[0] == "rename" and o[2] == f"{partial}/MANIFEST.json")
    created = [o[1] for o in operations if o[0] == "create"]
    assert len(created) == 6
    for file in created:
        last_write = max(n for n, o in enumerate(operations) if o[:2] == ("write", file))
        assert last_write < place["fsync", file] <= place[manifest], f"{file} is flushed before the manifest"
    assert place[manifest] < place["fsync", partial] < renamed, "the folder is flushed before it appears"
    assert max(place["create", file] for file in created) == place["create", manifest[1]], (
        "the manifest is last"
    )
    parent = [n for n, o in enumerate(operations) if o == ("fsync", ".")]
    assert any(n > renamed for n in parent)
    gone = next(n for n, o in enumerate(operations) if o[0] == "rename" and o[1] == "step-000001")
    assert renamed < min(n for n in parent if n > renamed) < gone, (
        "the old one goes when the new one is on the disk"
    )
    assert "unlink" not in kinds[:gone]


@pytest.mark.parametrize("power_fails", [False, True])
def test_after_every_prefix_of_a_save_the_run_can_go_on(tmp_path: Path, trained: Trained, power_fails: bool):
    operations = recorded_save(tmp_path / "recorded", trained)
    two_saved(tmp_path / "before", trained)
    appears = next(n for n, o in enumerate(operations) if o[0] == "rename" and o[2] == "step-000003")
    for length in range(len(operations) + 1):
        folder = tmp_path / "replayed"
        shutil.copytree(tmp_path / "before", folder, symlinks=True)
        replay(operations[:length], folder, loses_what_is_not_flushed=power_fails)
        assert latest_step(folder) == (3 if length > appears else 2)
        assert (folder / "best").exists()
        shutil.rmtree(folder)


def test_a_folder_that_appears_before_its_files_are_flushed_would_be_noticed(
    tmp_path: Path, trained: Trained
):
    """Negative control of the replay."""
    operations = [o for o in recorded_save(tmp_path / "recorded", trained) if o[0] != "fsync"]
    folder = tmp_path / "replayed"
    two_saved(folder, trained)
    appears = next(n for n, o in enumerate(operations) if o[0] == "rename" and o[2] == "step-000003")
    replay(operations[: appears + 1], folder, loses_what_is_not_flushed=True)
    with pytest.raises(AssertionError):
        latest_step(folder)


def bytes_of(trained: Trained) -> int:
    policy, optimizer = trained
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    return sum(tensor.nbytes for tensor in [*policy.parameters(), *states])


def test_a_disk_that_is_full_at_any_operation_costs_no_checkpoint(tmp_path: Path, trained: Trained):
    num_operations = len(recorded_save(tmp_path / "recorded", trained))
    two_saved(tmp_path / "before", trained)
    told: set[str] = set()
    for broken in range(num_operations):
        folder = tmp_path / "full"
        shutil.copytree(tmp_path / "before", folder, symlinks=True)
        manager = CheckpointManager(folder, keep=2)

        def fill(number: int, operation: Operation, broken: int = broken) -> None:
            if number >= broken and operation[0] not in ("unlink", "rmdir"):  # it stays full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with watched(folder, fill):
            try:
                save(manager, 3, trained, best=3)
            except FinetoothError as error:
                told.add(re.sub(r"[\d,]+ are free", "N are free", str(error).partition(": ")[2]))
        assert latest_step(folder) in (2, 3)
        hidden = [path.name for path in folder.iterdir() if path.name.startswith(".step-")]
        assert hidden == [], f"operation {broken} leaves a part"
        if broken % 8 == 0:  # now that there is room again
            save(manager, 4, trained, best=3)
            assert latest_step(folder) == 4
        shutil.rmtree(folder)
    needed = f"{bytes_of(trained):,} bytes are needed and N are free"
    assert told == {
        f"cannot be written (No space left on device), {needed}; free space there or choose another place",
    }


def test_room_is_asked_for_before_anything_is_written(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    manager = CheckpointManager(tmp_path)
    save(manager, 1, trained)
    needed = bytes_of(trained)
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    with watched(tmp_path) as operations, pytest.raises(FinetoothError) as caught:
        save(manager, 2, trained)
    assert str(caught.value) == (
        f"{tmp_path}: {needed:,} bytes are needed and {needed - 1:,} are free; "
        "free space there or choose another place"
    )
    assert not [operation for operation in operations if operation[0] == "write"]
    assert latest_step(tmp_path) == 1


def test_a_disk_that_gives_back_other_bytes_is_found_while_saving(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    manager = CheckpointManager(tmp_path, keep=1)
    save(manager, 1, trained)
    real = os.write

    def flipping(descriptor: int, content: memoryview) -> int:
        if len(content) < 5000:
            return real(descriptor, content)
        return real(descriptor, bytes([content[0] ^ 1]) + bytes(content[1:]))

    monkeypatch.setattr(files.os, "write", flipping)
    with pytest.raises(FinetoothError) as caught:
        save(manager, 2, trained)
    assert str(caught.value).endswith(
        ".safetensors: reads back otherwise than it was written; check the disk and the memory"
    )
    monkeypatch.undo()
    assert latest_step(tmp_path) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["parameter", "state"])
def test_a_checkpoint_never_holds_what_is_not_finite(tmp_path: Path, value: float, what: str):
    policy = small_policy(num_hidden_layers=1)
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    policy(collate([(0, 1)], random_documents(2))).backward()
    optimizer.step()
    manager = CheckpointManager(tmp_path)
    save(manager, 1, (policy, optimizer))
    norm = policy.model.model.norm.weight
    broken = norm if what == "parameter" else optimizer.state[norm]["exp_avg_sq"]
    name = "model.norm.weight" if what == "parameter" else "exp_avg_sq.model.norm.weight"
    with torch.no_grad():
        broken[3] = value
    with pytest.raises(NonFiniteError) as caught:
        save(manager, 2, (policy, optimizer))
    assert str(caught.value) == (
        f"{tmp_path}: {name} would hold a value that is not finite; "
        "the checkpoint before it is good: go on from there with a lower training.learning_rate"
    )
    assert latest_step(tmp_path) == 1


def test_the_files_are_those_that_transformers_writes(tmp_path: Path, trained: Trained):
    folder = save(CheckpointManager(tmp_path / "ours"), 1, trained)
    trained[0].save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "theirs" / name).read_text())


def test_training_goes_on_while_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is saved is the state at the time of the call, although every tensor changes meanwhile."""
    policy = small_policy(num_hidden_layers=1)
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    policy(collate([(0, 1)], random_documents(2))).backward()
    optimizer.step()
    disk_works = threading.Event()
    real = dealt_files.write_tensors
    monkeypatch.setattr(dealt_files, "write_tensors", lambda *a: disk_works.wait() and real(*a))
    manager = CheckpointManager(tmp_path, background=True)
    then = {name: tensor.clone() for name, tensor in policy.model.named_parameters()}
    states = {name: optimizer.state[p]["exp_avg"].clone() for name, p in policy.model.named_parameters()}
    folder = save(manager, 1, (policy, optimizer))
    assert not folder.exists()
    manager.check()
    optimizer.step()
    assert not torch.equal(policy.model.model.norm.weight, then["model.norm.weight"])
    disk_works.set()
    manager.wait()
    saved, momenta = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    assert all(torch.equal(saved[name], then[name]) for name in then)
    assert all(torch.equal(momenta[f"exp_avg.{name}"], states[name]) for name in states)


def test_a_save_that_fails_beside_the_training_is_told_where_one_asks(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    manager = CheckpointManager(tmp_path, background=True)
    save(manager, 1, trained)
    manager.wait()
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage)
    for ask in (manager.check, manager.wait, lambda: save(manager, 3, trained)):
        save(manager, 2, trained)
        thread = manager._background._thread if manager._background else None
        assert thread is not None
        thread.join()
        with pytest.raises(FinetoothError, match=r"bytes are needed and 0 are free"):
            ask()
        manager.wait()  # told once
    assert latest_step(tmp_path) == 1


def test_what_fails_while_a_save_goes_on_waits_for_it(tmp_path: Path, trained: Trained):
    manager = CheckpointManager(tmp_path, background=True)

    def fail() -> None:
        with manager.finishing():
            save(manager, 1, trained)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert latest_step(tmp_path) == 1


def test_what_lies_beyond_the_step_taken_up_is_set_aside(tmp_path: Path, trained: Trained):
    """The best one may be among it; then nothing is called the best."""
    manager = CheckpointManager(tmp_path, keep=5)
    for step in (1, 2, 3):
        save(manager, step, trained, best=step)
    (tmp_path / ".step-000004.partial-0").mkdir()
    (tmp_path / "aside-step-000003").mkdir()  # of an earlier time
    aside = manager.set_aside_after(1, best_step=None)
    assert aside == [tmp_path / "aside-step-000002", tmp_path / "aside-step-000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(path.name for path in aside), "step-000001"]
    assert check_folder(aside[1]) == []
    assert latest_step(tmp_path) == 1
    save(manager, 2, trained, best=2)
    assert os.readlink(tmp_path / "best") == "step-000002"
