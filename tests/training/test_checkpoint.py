"""Checkpoints give back every bit, roll, keep the best, and are never used damaged."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.canaries import Canary
from tests.documents import random_documents, small_policy
from transformers import AutoModelForCausalLM

from finetooth.base.errors import FinetoothError
from finetooth.batching.collate import collate
from finetooth.model.policy import PolicyModel
from finetooth.training.checkpoint import CheckpointManager, TrainingState, restore_optimizer
from finetooth.training.optimizer import create_optimizer

FILES = (
    *("MANIFEST.json", "config.json", "generation_config.json"),
    *("model.safetensors", "optimizer.safetensors", "state.json"),
)


def trained(num_updates: int = 2, *, seed: int = 0) -> tuple[PolicyModel, torch.optim.Optimizer]:
    policy = small_policy(seed=seed)
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    for _ in range(num_updates):
        policy(collate([(0, 1, 2)], random_documents(3))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy, optimizer


def state_after(step: int, *, best: int | None = None) -> TrainingState:
    return TrainingState(next_step=step + 1, identity={"seed": 42}, best_step=best, best_value=0.5)


def save(manager: CheckpointManager, step: int, *, best: int | None = None) -> Path:
    policy, optimizer = trained()
    return manager.save(state_after(step, best=best), policy=policy, optimizer=optimizer)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(line: str) -> None:
    pytest.fail(f"nothing is damaged, yet: {line}")


def test_a_checkpoint_gives_back_every_bit(tmp_path: Path):
    policy, optimizer = trained()
    manager = CheckpointManager(tmp_path)
    state = TrainingState(
        next_step=8,
        identity={"seed": 42, "training.learning_rate": 1e-5},
        best_step=7,
        best_value=1 / 3,
        scaler={"scale": 65536.0, "_growth_tracker": 3},
    )
    assert manager.save(state, policy=policy, optimizer=optimizer) == tmp_path / "step-000007"
    found = manager.latest(notify=refuse)
    assert found is not None
    assert (found.folder, found.state) == (tmp_path / "step-000007", state)
    again = PolicyModel(AutoModelForCausalLM.from_pretrained(found.folder))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in policy.state_dict().items())
    fresh = create_optimizer(again, learning_rate=1e-3)
    restore_optimizer(found, policy=again, optimizer=fresh)
    ours, theirs = list(again.parameters()), list(policy.parameters())
    assert len(fresh.state) == len(optimizer.state) == len(ours)
    for own, other in zip(ours, theirs, strict=True):
        assert fresh.state[own].keys() == optimizer.state[other].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(
            torch.equal(fresh.state[own][key], optimizer.state[other][key]) for key in fresh.state[own]
        )
        assert fresh.state[own]["exp_avg"].any()


def test_a_parameter_without_a_gradient_has_no_state_and_gets_none(tmp_path: Path):
    policy, optimizer = trained(0)
    manager = CheckpointManager(tmp_path)
    manager.save(state_after(1), policy=policy, optimizer=optimizer)
    found = manager.latest(notify=refuse)
    assert found is not None
    restore_optimizer(found, policy=policy, optimizer=optimizer)
    assert not optimizer.state


def test_names_that_end_alike_are_told_apart(tmp_path: Path):
    """`model.norm.weight` ends the name of no other parameter's state, though `norm.weight` would."""
    policy, optimizer = trained()
    save_names = set(
        load_file(
            CheckpointManager(tmp_path).save(state_after(1), policy=policy, optimizer=optimizer)
            / "optimizer.safetensors"
        )
    )
    expected = {
        f"{key}.{name}"
        for name, _ in policy.model.named_parameters()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert save_names == expected


def test_a_checkpoint_holds_these_files_and_no_pickle(tmp_path: Path):
    folder = save(CheckpointManager(tmp_path), 3)
    assert names(folder) == sorted(FILES)
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            load_file(path)  # safetensors hold tensors only


def test_the_newest_are_kept_and_the_best_survives(tmp_path: Path):
    manager = CheckpointManager(tmp_path, keep=2)
    for step in range(1, 7):
        save(manager, step, best=min(step, 2))
    assert names(tmp_path) == ["best", "step-000002", "step-000005", "step-000006"]
    assert os.readlink(tmp_path / "best") == "step-000002"
    save(manager, 7, best=7)
    assert os.readlink(tmp_path / "best") == "step-000007"
    assert names(tmp_path) == ["best", "step-000006", "step-000007"]
    for step in (8, 9, 10):
        save(manager, step, best=7)
    assert names(tmp_path) == ["best", "step-000007", "step-000009", "step-000010"]


def test_steps_are_ordered_as_numbers(tmp_path: Path):
    manager = CheckpointManager(tmp_path, keep=2)
    for step in (999_999, 1_000_000):
        save(manager, step)
    found = manager.latest(notify=refuse)
    assert found is not None
    assert found.folder.name == "step-1000000"


def test_at_least_one_checkpoint_is_kept(tmp_path: Path):
    with pytest.raises(AssertionError, match="at least the newest checkpoint is kept"):
        CheckpointManager(tmp_path, keep=0)


def test_without_checkpoints_there_is_none(tmp_path: Path):
    assert CheckpointManager(tmp_path / "absent").latest(notify=refuse) is None
    (tmp_path / "step-000001.old").mkdir()
    (tmp_path / ".step-000002.partial-abc").mkdir()
    assert CheckpointManager(tmp_path).latest(notify=refuse) is None


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[Callable[[Path], None], str] = {
    flip_a_bit: "{name}: its content differs from its hash",
    cut_the_end: "{name}: {short} bytes instead of {size}",
    Path.unlink: "{name}: missing",
}


@pytest.mark.parametrize("name", [name for name in FILES if name != "MANIFEST.json"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: Callable[[Path], None]):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    newest = save(manager, 2)
    size = (newest / name).stat().st_size
    damage(newest / name)
    told: list[str] = []
    found = manager.latest(notify=told.append)
    assert found is not None
    assert (found.folder.name, found.state) == ("step-000001", state_after(1))
    fact = DAMAGES[damage].format(name=name, size=size, short=size - 1)
    assert told == [f"{newest}: damaged: {fact}; the checkpoint before it is used"]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "MANIFEST.json: missing"),
        (b"{", "MANIFEST.json: unreadable"),
        (b'{"files": {}}', "config.json: not in the manifest"),
    ],
)
def test_a_damaged_manifest_is_damage(tmp_path: Path, content: bytes | None, fact: str):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    newest = save(manager, 2)
    if content is None:
        (newest / "MANIFEST.json").unlink()
    else:
        (newest / "MANIFEST.json").write_bytes(content)
    told: list[str] = []
    found = manager.latest(notify=told.append)
    assert found is not None
    assert found.folder.name == "step-000001"
    assert told == [f"{newest}: damaged: {fact}; the checkpoint before it is used"]


def test_where_all_are_damaged_the_run_does_not_go_on(tmp_path: Path):
    manager = CheckpointManager(tmp_path)
    for step in (1, 2):
        (save(manager, step) / "state.json").unlink()
    with pytest.raises(FinetoothError) as caught:
        manager.latest(notify=refuse)
    fact = "damaged: state.json: missing"
    assert str(caught.value).split("\n") == [
        f"{tmp_path}/step-00000{step}: {fact}; restore it, or start the run anew with --resume auto"
        for step in (2, 1)
    ]
    told: list[str] = []
    assert manager.latest(notify=told.append, must=False) is None
    assert told == [f"{tmp_path}/step-00000{step}: {fact}; the run starts anew" for step in (2, 1)]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)
    policy, optimizer = trained(5, seed=3)
    folder = manager.save(state_after(1), policy=policy, optimizer=optimizer)
    assert manager.latest(notify=refuse) is not None
    saved = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(saved, policy.model.model.norm.weight)


def test_a_checkpoint_that_fails_while_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manager = CheckpointManager(tmp_path)
    save(manager, 1)

    def fail(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("finetooth.training.dealt_files.write_tensors", fail)
    with pytest.raises(RuntimeError, match="killed"):
        save(manager, 2)
    assert names(tmp_path) == ["step-000001"]


@pytest.mark.parametrize("is_vouched_for", [False, True])
def test_a_pickle_in_a_checkpoint_never_runs(is_vouched_for: bool, tmp_path: Path):
    """In place of the optimiser's state, with the manifest of what was saved, or with one that fits."""
    canary, manager = Canary(tmp_path), CheckpointManager(tmp_path / "checkpoints")
    first, second = save(manager, 1), save(manager, 2)
    (second / "optimizer.safetensors").write_bytes(canary.pickle)
    if is_vouched_for:
        manifest = json.loads((second / "MANIFEST.json").read_text())
        digest = hashlib.sha256(canary.pickle).hexdigest()
        manifest["files"]["optimizer.safetensors"] = {"size": len(canary.pickle), "sha256": digest}
        (second / "MANIFEST.json").write_text(json.dumps(manifest))
    checkpoint = manager.latest(notify=lambda _: None)
    assert checkpoint is not None
    assert checkpoint.folder == (second if is_vouched_for else first)
    policy, optimizer = trained(0)
    if is_vouched_for:
        with pytest.raises(FinetoothError) as caught:
            restore_optimizer(checkpoint, policy=policy, optimizer=optimizer)
        assert str(caught.value).startswith(f"{second}/optimizer.safetensors: no optimiser state: ")
        assert str(caught.value).endswith("; remove this checkpoint; the one before it is used")
    assert not canary.has_run
    pickle.loads((second / "optimizer.safetensors").read_bytes())
    assert canary.has_run
