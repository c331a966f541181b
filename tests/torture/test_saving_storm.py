"""Storms on checkpoints: killed while they are saved, damaged in every file; nothing is repaired by hand."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tests.documents import random_documents, small_policy

from finetooth.batching.collate import collate
from finetooth.model.policy import PolicyModel
from finetooth.training.checkpoint import CheckpointManager, TrainingState
from finetooth.training.optimizer import create_optimizer

NUM_KILLS = 200
LONGEST_LIFE_SECONDS = 0.25
DAMAGES_PER_FILE_AND_KIND = 20
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.torture.test_saving_storm"])


def trained() -> tuple[PolicyModel, torch.optim.Optimizer]:
    policy = small_policy(num_hidden_layers=1)
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    policy(collate([(0, 1)], random_documents(2))).backward()
    optimizer.step()
    return policy, optimizer


def save_for_ever(folder: Path, committed: Path) -> None:
    """Takes up the newest checkpoint and saves one step after the other, noting what has been committed."""
    torch.set_num_threads(1)
    manager = CheckpointManager(folder, keep=2, background=True)

    def refuse(line: str) -> None:
        raise AssertionError(line)

    found = manager.latest(notify=refuse)
    done = 0 if found is None else found.state.next_step - 1
    assert done >= int(committed.read_text() or 0), "a committed checkpoint was lost"
    manager.set_aside_after(done, best_step=None if found is None else found.state.best_step)
    policy, optimizer = trained()
    for step in range(done + 1, 10**6):
        state = TrainingState(next_step=step + 1, identity={}, best_step=step - step % 3)
        manager.save(state, policy=policy, optimizer=optimizer)
        manager.wait()
        new = committed.with_suffix(".new")
        new.write_text(str(step))
        new.replace(committed)


@pytest.mark.torture
def test_two_hundred_kills_while_saving_lose_nothing(tmp_path: Path):
    folder, committed = tmp_path / "checkpoints", tmp_path / "committed"
    committed.touch()
    draws = random.Random(7)
    for _ in range(NUM_KILLS):
        before = committed.read_text()
        process = _CONTEXT.Process(target=save_for_ever, args=(folder, committed), daemon=True)
        process.start()
        give_up = time.monotonic() + 60
        while committed.read_text() == before:  # it has loaded and saved once more
            assert process.is_alive(), f"it ended with {process.exitcode}"
            assert time.monotonic() < give_up, "nothing is saved"
            time.sleep(0.002)
        time.sleep(draws.uniform(0, LONGEST_LIFE_SECONDS))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    found = CheckpointManager(folder).latest(notify=pytest.fail)
    assert found is not None
    assert found.state.next_step - 1 >= int(committed.read_text()) >= NUM_KILLS


def damaged(content: bytes, kind: str, draws: random.Random) -> bytes | None:
    if kind == "delete":
        return None
    place = draws.randrange(len(content))
    if kind == "truncate":
        return content[:place]
    return content[:place] + bytes([content[place] ^ 1 << draws.randrange(8)]) + content[place + 1 :]


def count_undetected(folder: Path, *, times: int) -> list[str]:
    """Damages each file of the newer of two checkpoints in each way; what was not found."""
    policy, optimizer = trained()
    manager = CheckpointManager(folder)
    for step in (1, 2):
        manager.save(TrainingState(next_step=step + 1, identity={}), policy=policy, optimizer=optimizer)
    newest, draws = folder / "step-000002", random.Random(3)
    undetected: list[str] = []
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        for kind in ("flip", "truncate", "delete"):
            for _ in range(times):
                content = damaged(whole, kind, draws)
                file.unlink() if content is None else file.write_bytes(content)
                told: list[str] = []
                found = manager.latest(notify=told.append)
                if found is None or found.folder.name != "step-000001" or len(told) != 1:
                    undetected.append(f"{kind} of {file.name}")
                file.write_bytes(whole)
    assert manager.latest(notify=pytest.fail) is not None
    shutil.rmtree(folder)
    return undetected


@pytest.mark.torture
def test_every_damage_of_every_file_is_found(tmp_path: Path):
    assert count_undetected(tmp_path / "checkpoints", times=DAMAGES_PER_FILE_AND_KIND) == []
