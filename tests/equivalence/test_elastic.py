"""A run that goes from two ranks to one and on to four, each time with another layout, learns the same."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.documents import random_documents, save_small_model
from tests.ranks import on_ranks

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.config.schema import (
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ParallelConfig,
    SFTConfig,
    TrainingConfig,
)
from finetooth.model.load import load_policy
from finetooth.training.checkpoint import CheckpointManager
from finetooth.training.parallel import whole
from finetooth.training.trainer import SFTTrainer

CPU = DeviceManager("cpu", "fp32")


@dataclass(frozen=True)
class Leg:
    """A part of the run: how it is laid out, and behind which step it goes on."""

    parallel: ParallelConfig
    row_tokens: int = 64
    packing: bool = True
    behind: int | None = None


def train(ranks: Ranks, folder: Path, leg: Leg) -> dict[str, torch.Tensor]:
    """Trains to the end of twelve steps; returns the parameters."""
    config = SFTConfig(
        model=ModelConfig(path=str(folder / "base")),
        data=DataConfig(train="in memory", max_length=24),
        training=TrainingConfig(
            max_steps=12,
            global_batch_size=5,
            learning_rate=1e-3,
            dropout=0.1,
            device="cpu",
            packing=leg.packing,
            row_tokens=leg.row_tokens,
        ),
        parallel=leg.parallel,
        evaluation=EvaluationConfig(every=4),
        checkpoints=CheckpointsConfig(every=4, keep=9),
        output_dir=str(folder / "run"),
    )
    manager = CheckpointManager(folder / "run" / "checkpoints", ranks=ranks)
    checkpoint = None if leg.behind is None else manager.latest(notify=print)
    model = config.model if checkpoint is None else ModelConfig(path=str(checkpoint.folder))
    trainer = SFTTrainer(
        config,
        policy=load_policy(model, devices=CPU),
        train=random_documents(24),
        dev=random_documents(7, seed=5),
        devices=CPU,
        ranks=ranks,
    )
    if checkpoint is not None:
        assert checkpoint.state.next_step == (leg.behind or 0) + 1
        trainer.take_up(checkpoint)
    trainer.train()
    return {name: whole(p).detach().clone() for name, p in trainer.policy.named_parameters()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def forget(folder: Path, *steps: int) -> None:
    for step in steps:
        shutil.rmtree(folder / "run" / "checkpoints" / f"step-{step:06d}")


@pytest.mark.slow
def test_two_ranks_then_one_then_four(tmp_path: Path):
    elastic, plain = tmp_path / "elastic", tmp_path / "plain"
    for folder in (elastic, plain):
        save_small_model(folder / "base")
    expected = train(ALONE, plain, Leg(ParallelConfig(), packing=False))
    on_ranks(train, elastic, Leg(ParallelConfig(shard="all", offload_optimizer=True)), world_size=2)
    forget(elastic, 8, 12)
    train(ALONE, elastic, Leg(ParallelConfig(offload_optimizer=True), row_tokens=100, behind=4))
    forget(elastic, 12)
    last = on_ranks(train, elastic, Leg(ParallelConfig(), row_tokens=30, behind=8), world_size=4)
    for parameters in last:
        for name, tensor in expected.items():
            assert (parameters[name] - tensor).norm() <= 1e-5 * tensor.norm(), name
    measured, wanted = lines(elastic), lines(plain)
    assert [line["step"] for line in measured] == [line["step"] for line in wanted]
    figures = ("loss", "grad_norm", "train_loss", "dev_loss", "num_targets", "num_tokens", "learning_rate")
    for line, other in zip(measured, wanted, strict=True):
        named = [name for name in figures if name in other]
        assert {n: line[n] for n in named} == pytest.approx({n: other[n] for n in named}, rel=1e-5)
        if "loss" in other:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
