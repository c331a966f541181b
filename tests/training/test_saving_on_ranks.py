"""Ranks that share a policy save and load it together: own files, own parts, and failures told by all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.documents import random_documents, small_policy
from tests.ranks import on_ranks

from finetooth.base import files
from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import Ranks
from finetooth.base.errors import FinetoothError, ToldElsewhere
from finetooth.base.files import check_folder
from finetooth.batching.collate import collate
from finetooth.config.schema import ParallelConfig
from finetooth.model.policy import PolicyModel
from finetooth.training import checkpoint as checkpoint_module
from finetooth.training import dealt_files
from finetooth.training.checkpoint import CheckpointManager, TrainingState, restore_optimizer
from finetooth.training.dealt_files import gather_policy, write_contents
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import distribute

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
FAMILIES: dict[str, Any] = {
    "tied": transformers.Gemma2Config(**SMALL),
    "untied": transformers.GPTNeoXConfig(**SMALL),
    "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2),
    "mixtral": transformers.MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3-moe": transformers.Qwen3MoeConfig(
        **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    ),
}


def family(name: str) -> PolicyModel:
    torch.manual_seed(3)
    return PolicyModel(transformers.AutoModelForCausalLM.from_config(FAMILIES[name]))


def shared_after_one_step(policy: PolicyModel, ranks: Ranks) -> torch.optim.Optimizer:
    """Every rank trains on the same row, so that the gradient is that of one process."""
    shared = distribute(
        policy, ranks, parallel=ParallelConfig(shard="all"), devices=DeviceManager("cpu", "fp32")
    )
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    batch = collate([(0, 1)], random_documents(2))
    (shared.loss_sum(batch, gradient_scale=1.0) / ranks.world_size).backward()
    optimizer.step()
    return optimizer


def save_and_load(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What one rank did while the ranks saved a policy, and what it holds after loading it again."""
    policy = small_policy()
    optimizer = shared_after_one_step(policy, ranks)
    manager = CheckpointManager(folder, ranks=ranks, background=True)
    read: list[str] = []
    real = {name: getattr(files, name) for name in ("_read_back", "_flushed")}
    for name, function in real.items():
        setattr(files, name, lambda path, f=function: read.append(path.name) or f(path))
    manager.save(TrainingState(next_step=2, identity={}), policy=policy, optimizer=optimizer)
    manager.wait()
    for name, function in real.items():
        setattr(files, name, function)
    found = manager.latest(notify=print)
    assert found is not None
    again = small_policy(seed=9)
    fresh = create_optimizer(again, learning_rate=1e-3)
    distribute(again, ranks, parallel=ParallelConfig(shard="all"), devices=DeviceManager("cpu", "fp32"))
    fresh = create_optimizer(again, learning_rate=1e-3)
    pieces: list[int] = []
    real_read = checkpoint_module.read_like

    def counting(part: Any, parameter: torch.Tensor) -> torch.Tensor:
        tensor = real_read(part, parameter)
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]
        pieces.append(own.numel())
        return tensor

    checkpoint_module.read_like = counting
    restore_optimizer(found, policy=again, optimizer=fresh)
    checkpoint_module.read_like = real_read
    names = dict(again.model.named_parameters())
    same = [
        torch.equal(fresh.state[names[name]][key].to_local(), optimizer.state[p][key].to_local())  # type: ignore[union-attr]
        and fresh.state[names[name]][key].placements == optimizer.state[p][key].placements  # type: ignore[union-attr]
        for name, p in policy.model.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
    ]
    return {"read": read, "same": all(same) and len(same) > 0, "pieces": sum(pieces)}


def fail_on_one_rank(ranks: Ranks, folder: Path) -> list[Any]:
    """Rank 1's disk fails during the save of step 2; when each rank is told, and what."""
    policy = small_policy()
    optimizer = shared_after_one_step(policy, ranks)
    manager = CheckpointManager(folder, ranks=ranks, background=True)
    manager.save(TrainingState(next_step=2, identity={}), policy=policy, optimizer=optimizer)
    manager.wait()
    real = dealt_files.write_tensors

    def full(path: Path, tensors: Any) -> Any:
        if ranks.rank == 1:
            raise FinetoothError(f"{path.name}: no room")
        return real(path, tensors)

    dealt_files.write_tensors = full
    manager.save(TrainingState(next_step=3, identity={}), policy=policy, optimizer=optimizer)
    try:
        for check in range(1_000_000):
            ranks.sums([1.0])  # as a step of training does
            try:
                manager.check()
            except FinetoothError as error:
                return [check, type(error).__name__, str(error)]
    finally:
        dealt_files.write_tensors = real
    return []


def save_each_family(ranks: Ranks, folder: Path) -> list[str]:
    """Writes every family's files while two ranks share its parameters."""
    for name in FAMILIES:
        policy = family(name)
        distribute(policy, ranks, parallel=ParallelConfig(shard="all"), devices=DeviceManager("cpu", "fp32"))
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        write_contents(gather_policy(policy, ranks), place, ranks)
    return sorted(FAMILIES)


def find_damage(ranks: Ranks, folder: Path) -> list[str]:
    told: list[str] = []
    found = CheckpointManager(folder, ranks=ranks).latest(notify=told.append)
    return [*told, found.folder.name if found else "none"]


def on_each(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """All of the above in one start of the processes."""
    told = {
        "loaded": save_and_load(ranks, folder / "loaded"),
        "failed": fail_on_one_rank(ranks, folder / "failed"),
        "families": save_each_family(ranks, folder / "families"),
    }
    ranks.sums([1.0])
    if ranks.is_first:
        (folder / "failed" / "step-000002").mkdir()
        (folder / "failed" / "step-000002" / "MANIFEST.json").write_text('{"files": {}}')
        (folder / "failed" / "step-000002" / "state.json").write_text("{}")
    ranks.sums([1.0])
    return told | {"damaged": find_damage(ranks, folder / "failed")}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return folder, on_ranks(on_each, folder, world_size=2)


def test_each_rank_hashes_what_it_wrote_and_nothing_else(outcome: tuple[Path, list[dict[str, Any]]]):
    folder, ranks = outcome
    own = [{name for name in told["loaded"]["read"] if name.endswith(".safetensors")} for told in ranks]
    assert own == [
        {f"{stem}-0000{rank}-of-00002.safetensors" for stem in ("model", "optimizer")} for rank in (1, 2)
    ]
    assert check_folder(folder / "loaded" / "step-000001") == []


def test_each_rank_reads_its_part_of_the_optimizer_to_the_bit(outcome: tuple[Path, list[dict[str, Any]]]):
    folder, ranks = outcome
    assert all(told["loaded"]["same"] for told in ranks)
    whole = sum(
        tensor.numel()
        for file in (folder / "loaded" / "step-000001").glob("optimizer-*")
        for name, tensor in load_file(file).items()
        if not name.startswith("step.")
    )
    parts = [told["loaded"]["pieces"] for told in ranks]
    assert max(parts) < 0.6 * whole, "no rank reads the whole"
    assert sum(parts) >= whole


def test_a_disk_that_fails_on_one_rank_ends_all_at_the_same_step(outcome: tuple[Path, list[dict[str, Any]]]):
    folder, ranks = outcome
    (step, kind, text), (step_1, kind_1, _) = (told["failed"] for told in ranks)
    assert step == step_1
    assert (kind, kind_1) == (FinetoothError.__name__, ToldElsewhere.__name__)
    assert text.startswith(f"rank 1, writing {folder / 'failed' / 'step-000002'}: model-00002-of-00002")
    assert text.endswith(": no room")
    assert check_folder(folder / "failed" / "step-000001") == []


@pytest.mark.parametrize("name", FAMILIES)
def test_shared_policies_are_saved_as_one_process_saves_them(
    outcome: tuple[Path, list[dict[str, Any]]], tmp_path: Path, name: str
):
    """Also where names on disk are others than in memory, as with a mixture of experts."""
    place = outcome[0] / "families" / name
    family(name).save_pretrained(tmp_path / "whole")
    theirs = load_file(tmp_path / "whole" / "model.safetensors")
    ours: dict[str, torch.Tensor] = {}
    for file in place.glob("*.safetensors"):
        ours |= load_file(file)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    settings = [json.loads((path / "config.json").read_text()) for path in (place, tmp_path / "whole")]
    assert settings[0] == settings[1]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(place)
    expected = family(name).model.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())


def test_ranks_find_damage_together(outcome: tuple[Path, list[dict[str, Any]]]):
    folder, ranks = outcome
    fact = f"{folder / 'failed' / 'step-000002'}: damaged: state.json: not in the manifest"
    for told in ranks:
        assert told["damaged"] == [f"{fact}; the checkpoint before it is used", "step-000001"]
