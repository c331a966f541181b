"""Runs that train adapters: saved alone, resumed to the bit, the same on ranks, evaluated as trained."""

import contextlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from tests.documents import save_small_model
from tests.ranks import on_ranks
from tests.small_run import run_process, write_run
from tests.training.test_resuming import DEV, DOCUMENTS, at, losses, make_config

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import Ranks
from finetooth.base.errors import ConfigError
from finetooth.config.schema import AdapterConfig, ModelConfig, ParallelConfig, SFTConfig
from finetooth.model.start import resume_policy, start_policy
from finetooth.training.checkpoint import Checkpoint, TrainingState
from finetooth.training.resuming import require_same_adapter
from finetooth.training.trainer import SFTTrainer, TrainResult

CPU = DeviceManager("cpu", "fp32")
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "lora_dropout": 0.2},
    "dora": {"type": "dora", "rslora": True},
    "whole": {"type": "lora", "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "qlora": {"type": "qlora"},
}
WITHOUT_BITSANDBYTES = not transformers.utils.is_bitsandbytes_available()


def adapter_config(folder: Path, base: Path, kind: str, **training: Any) -> SFTConfig:
    config = make_config(folder, base=str(base), **training)
    return replace(config, adapter=AdapterConfig(r=4, **KINDS[kind]))


def train(config: SFTConfig, ranks: Ranks | None = None) -> TrainResult:
    options = {} if ranks is None else {"ranks": ranks}
    policy, _ = start_policy(config, None, devices=CPU)
    return SFTTrainer(config, policy=policy, train=DOCUMENTS, dev=DEV, **options).train()


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(tmp_path: Path, kind: str):
    if kind == "qlora" and WITHOUT_BITSANDBYTES:
        pytest.skip("bitsandbytes is not installed")
    base = save_small_model(tmp_path / "base", hidden_size=64)
    config = adapter_config(tmp_path / "run", base, kind, max_steps=6)
    whole = train(config)
    first = load_file(at(tmp_path / "run", 6).folder / "optimizer.safetensors")
    adapter = load_file(at(tmp_path / "run", 6).folder / "adapter_model.safetensors")
    checkpoint = at(tmp_path / "run", 3)
    policy = resume_policy(config, None, checkpoint.folder, devices=CPU)
    trainer = SFTTrainer(config, policy=policy, train=DOCUMENTS, dev=DEV)
    trainer.take_up(checkpoint)
    resumed = trainer.train()
    assert losses(resumed) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0]
    for saved, name in ((first, "optimizer.safetensors"), (adapter, "adapter_model.safetensors")):
        again = load_file(at(tmp_path / "run", 6).folder / name)
        assert saved.keys() == again.keys()
        assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())


def test_a_checkpoint_holds_the_adapter_and_its_states_only(tmp_path: Path):
    base = save_small_model(tmp_path / "base")
    result = train(adapter_config(tmp_path / "run", base, "lora", max_steps=3))
    folder = at(tmp_path / "run", 3).folder
    assert sorted(file.name for file in folder.iterdir()) == [
        *("MANIFEST.json", "adapter_config.json", "adapter_model.safetensors", "generation_config.json"),
        *("optimizer.safetensors", "state.json"),
    ]
    trained = result.policy.num_parameters(trained=True)
    states = load_file(folder / "optimizer.safetensors")
    assert sum(tensor.numel() for tensor in states.values() if tensor.ndim) == 2 * trained
    assert (
        sum(tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values()) == trained
    )
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[5, 7, 3]])
    result.policy.eval()
    torch.testing.assert_close(
        PeftModel.from_pretrained(plain, folder)(input_ids=ids).logits, result.policy(input_ids=ids).logits
    )


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"r": 8}, "adapter.r"),
        ({"alpha": 1.0}, "adapter.alpha"),
        ({"lora_dropout": 0.1}, "adapter.lora_dropout"),
    ],
)
def test_another_adapter_is_refused_on_resume(tmp_path: Path, changes: dict[str, Any], name: str):
    config = adapter_config(tmp_path / "run", save_small_model(tmp_path / "base"), "lora", max_steps=4)
    train(config)
    changed = replace(config, adapter=replace(config.adapter, **changes))
    policy, _ = start_policy(changed, None, devices=CPU)
    trainer = SFTTrainer(changed, policy=policy, train=DOCUMENTS, dev=DEV)
    with pytest.raises(ConfigError) as caught:
        trainer.take_up(at(tmp_path / "run", 2))
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        *(f"adapter.{name}" for name in changes),
        "output_dir",
    ]


def train_on_ranks(ranks: Ranks, config: SFTConfig) -> list[float]:
    return losses(train(config, ranks))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora", "whole"])
def test_several_processes_train_the_same_adapter(tmp_path: Path, kind: str):
    """DDP and FSDP2; the documents' dropout masks do not depend on the ranks either."""
    base = save_small_model(tmp_path / "base")
    alone = adapter_config(tmp_path / "alone", base, kind, max_steps=4)
    expected = losses(train(alone))
    tensors = load_file(at(tmp_path / "alone", 4).folder / "adapter_model.safetensors")
    for shard in (None, "all"):
        folder = tmp_path / f"shared-{shard}"
        config = replace(alone, output_dir=str(folder), parallel=ParallelConfig(shard=shard))
        on_ranks(train_on_ranks, config, world_size=2)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found = [line["loss"] for line in lines if "loss" in line]
        assert found == pytest.approx(expected, rel=1e-6)
        shared = load_file(at(folder, 4).folder / "adapter_model.safetensors")
        assert shared.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (shared[name] - tensor).norm() <= 1e-3 * tensor.norm() + 1e-6, name


def start_on_ranks(ranks: Ranks, config: SFTConfig) -> set[str]:
    devices = DeviceManager("cpu", "bf16")
    policy, _ = start_policy(config, None, devices=devices)
    result = SFTTrainer(config, policy=policy, train=DOCUMENTS, ranks=ranks, devices=devices).train()
    return {str(p.dtype) for p in result.policy.parameters() if not p.requires_grad}


def test_a_frozen_base_in_bf16_is_shared_among_processes(tmp_path: Path):
    config = adapter_config(tmp_path / "run", save_small_model(tmp_path / "base"), "lora", max_steps=3)
    config = replace(config, parallel=ParallelConfig(shard="all"))
    dtypes, _ = on_ranks(start_on_ranks, config, world_size=2)
    assert dtypes == {"torch.bfloat16"}


def test_tokens_of_the_template_are_trained_beside_the_adapter(tmp_path: Path):
    """six-token adds its tokens to the small tokenizer; their rows come back with the policy."""
    run = write_run(
        tmp_path,
        data={"template": "six-token"},
        adapter={"type": "lora", "r": 2},
        training={"max_steps": 4},
        evaluation={"every": 0, "exact_match": "plain", "exact_match_records": 2},
    )
    code, stdout, stderr = run_process("train", run.name, folder=tmp_path)
    assert code == 0, stderr
    assert "trained parameters" in stdout
    settings = json.loads((tmp_path / "run/final/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")
    notes = json.loads((tmp_path / "run/environment.json").read_text())["template"]
    (rows,) = settings["trainable_token_indices"].values()
    assert len(rows) == len(notes["added_tokens"]) > 0
    code, stdout, stderr = run_process("eval", "run", "--json", folder=tmp_path)
    assert code == 0, stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for name in ("train_loss", "dev_loss", "exact_match", "stop_rate"):
        assert json.loads(stdout)[name] == pytest.approx(summary[name], rel=1e-6)
    code, stdout, stderr = run_process("compare", "base", "run", "--prompt", "What is 3?", folder=tmp_path)
    assert code == 0, stderr


def test_tokens_that_are_asked_for_are_trained_and_unknown_ones_named(tmp_path: Path):
    run = write_run(tmp_path, adapter={"type": "lora", "train_tokens": ["<|im_end|>", "<nothing>", "<none>"]})
    code, _, stderr = run_process("train", run.name, folder=tmp_path)
    assert code == 2
    assert stderr.split("\n")[-3:-1] == [
        f"adapter.train_tokens: '{name}' is no control token of the tokenizer; leave it out"
        for name in ("<nothing>", "<none>")
    ]
    write_names = ["train", run.name, 'adapter.train_tokens=["<|im_end|>"]', "max_steps=1"]
    code, _, stderr = run_process(*write_names, folder=tmp_path)
    assert code == 0, stderr
    settings = json.loads((tmp_path / "run/final/adapter_config.json").read_text())
    assert [len(rows) for rows in settings["trainable_token_indices"].values()] == [1]


@pytest.mark.parametrize(
    ("here", "names", "facts"),
    [
        (AdapterConfig(type="lora", r=8), ["adapter.r"], ["8 here, 4"]),
        (AdapterConfig(type="dora", r=8), ["adapter.type"], ["dora here, lora"]),
        (AdapterConfig(), ["adapter.type"], ["null here, lora"]),
        (AdapterConfig(type="lora", r=4, alpha=1), [], []),
    ],
)
def test_another_adapter_cannot_go_on_with_a_checkpoint(
    here: AdapterConfig, names: list[str], facts: list[str]
):
    saved = {f"adapter.{name}": value for name, value in asdict(AdapterConfig(type="lora", r=4)).items()}
    checkpoint = Checkpoint(Path("step-000003"), TrainingState(next_step=4, identity=saved))
    remedy = "undo the change, or name another output_dir; --accept-changes cannot bridge it"
    with contextlib.nullcontext() if not names else pytest.raises(ConfigError) as caught:
        require_same_adapter(checkpoint, here)
    if caught is not None:
        told = zip(names, facts, strict=True)
        assert caught.value.problems == [f"{name}: {fact} in step-000003; {remedy}" for name, fact in told]


def test_a_changed_adapter_is_told_before_its_parameters_are_read(tmp_path: Path):
    run = write_run(tmp_path, adapter={"type": "lora", "r": 4}, training={"max_steps": 2})
    assert run_process("train", run.name, folder=tmp_path)[0] == 0
    for changes in ([], ["--accept-changes"]):
        command = ["train", run.name, "--resume", "adapter.r=8", *changes]
        code, _, stderr = run_process(*command, folder=tmp_path)
        assert code == 2
        assert stderr.splitlines()[-1].startswith("adapter.r: 8 here, 4 in run/checkpoints/step-000002; undo")


def test_an_adapter_is_no_base(tmp_path: Path):
    base = save_small_model(tmp_path / "base")
    config = adapter_config(tmp_path / "run", base, "lora")
    policy, _ = start_policy(config, None, devices=CPU)
    policy.save_pretrained(tmp_path / "adapter")
    again = replace(config, model=ModelConfig(path=str(tmp_path / "adapter")))
    with pytest.raises(ConfigError) as caught:
        start_policy(again, None, devices=CPU)
    fact = f"model.path: {tmp_path}/adapter is an adapter, not a model"
    assert str(caught.value) == f"{fact}; merge it first: finetooth export RUN --to merged"
