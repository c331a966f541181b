"""Preference learning goes on from an export: two steps of TRL's DPO on the folder, without network."""

from contextlib import chdir
from pathlib import Path

import pytest
import torch
from tests.small_run import write_run
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from finetooth.cli import app


def test_dpo_goes_on_from_the_exported_folder(tmp_path: Path):
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets, which TRL reads, is not installed")
    with chdir(tmp_path):
        write_run(tmp_path)
        assert CliRunner().invoke(app, ["train", "run.yaml"]).exit_code == 0
        assert CliRunner().invoke(app, ["export", "run"]).exit_code == 0
    folder = tmp_path / "run" / "export" / "folder"
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"What is {number}?"}],
            "chosen": [{"role": "assistant", "content": f"is {number}."}],
            "rejected": [{"role": "assistant", "content": "four"}],
        }
        for number in range(4)
    ]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "dpo"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(0.6931, abs=1e-3), "policy and reference begin as one"
    after = trainer.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
