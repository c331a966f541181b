"""Families with layers, heads and experts of their own train on two ranks that share them as on one."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.architectures import ALTERNATING, EXPERTS, OF_GPT2, SMALL, random_policy
from tests.small_run import VOCABULARY, run_process, write_run
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, PreTrainedConfig, Qwen3MoeConfig
from typer.testing import CliRunner

from finetooth.cli import app

SIZE = {"vocab_size": VOCABULARY}
WINDOWED = {"sliding_window": 5, "layer_types": ALTERNATING}
FAMILIES = [
    Gemma3TextConfig(**{**SMALL, **SIZE, **WINDOWED}, tie_word_embeddings=True),
    GPT2Config(**{**OF_GPT2, **SIZE}, n_positions=128, tie_word_embeddings=True),
    Qwen3MoeConfig(**{**SMALL, **EXPERTS, **SIZE}, num_experts=4),
]
CHANGING = ("seconds", "time", "peak_memory_mb")


def metrics(folder: Path, output: str) -> list[dict[str, Any]]:
    lines = (folder / output / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in CHANGING} for line in lines
    ]


def logits(folder: Path, output: str) -> torch.Tensor:
    """Those of plain transformers, [B, T, V]."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder / output / "final").eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(40).reshape(2, 20), use_cache=False).logits


@pytest.mark.slow
@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_two_ranks_that_share_the_parameters_train_what_one_trains(config: PreTrainedConfig, tmp_path: Path):
    settings = {"max_steps": 3, "learning_rate": 1e-3}
    write_run(tmp_path, num_records=12, training=settings, evaluation={"every": 3, "max_new_tokens": 1})
    random_policy(config).model.save_pretrained(tmp_path / "base")
    with contextlib.chdir(tmp_path):
        alone = CliRunner().invoke(app, ["train", "run.yaml", "output_dir=alone"])
    assert alone.exit_code == 0, alone.stderr
    options = ("output_dir=shared", "parallel.shard=all", "--nproc", "2")
    code, _, stderr = run_process("train", "run.yaml", *options, folder=tmp_path)
    assert code == 0, stderr

    ours, theirs = metrics(tmp_path, "shared"), metrics(tmp_path, "alone")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    expected = logits(tmp_path, "alone")
    assert (logits(tmp_path, "shared") - expected).norm() <= 1e-4 * expected.norm()
    assert (expected - expected.roll(1, dims=1)).norm() > 1e-2 * expected.norm(), "nothing was compared"
