"""A run from a `.pt` file to the end: trained, resumed, written back, read again with the same logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.legacy_systems import configurable_file, per_head_file, simple_file
from tests.small_run import write_run
from tests.test_export import exported, refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetooth.base.errors import ConfigError
from finetooth.base.torch_files import read_torch_file
from finetooth.config.load import load_config
from finetooth.config.schema import ModelConfig
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.evaluate import evaluate
from finetooth.evaluation.speaker import open_speaker
from finetooth.model.load import load_model
from finetooth.train import train

IDS = torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(0))
GPT2 = {"normalization": "layernorm_nobias", "position_encoding": "learned_absolute", "ffn_type": "standard"}


def trained(folder: Path, base: str, *settings: str) -> Path:
    """The directory of a run of 10 steps, stopped in the middle and resumed."""
    write_run(folder, model={"path": base, "tokenizer": "base"}, data={"max_length": 32})
    config = [f"output_dir={folder / 'run'}", *settings]
    train(load_config(folder / "run.yaml", [*config, "training.max_steps=4"]))
    longer = load_config(folder / "run.yaml", [*config, "training.max_steps=10"])
    train(longer, resume="must", accept_changes=True)
    return folder / "run"


def logits(path: Path) -> torch.Tensor:
    model = load_model(ModelConfig(path=str(path), tokenizer="unused"), place="model.path")
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda path: configurable_file(path, num_key_value_heads=2), "ckpt_000010.pt"),
        (lambda path: configurable_file(path, **GPT2, weight_tying=True), "ckpt_000010.pt"),
        (per_head_file, "sft.pt"),
        (simple_file, "sft.pth"),
    ],
)
def test_a_run_goes_back_to_where_its_base_came_from(
    write: Callable[[Path], Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    theirs = write(tmp_path / "ckpt.pt")
    run = trained(tmp_path, "ckpt.pt")
    exported(str(run), "--to", "pt", "--out", str(tmp_path / "pt"))
    file = tmp_path / "pt" / name
    assert torch.equal(logits(file), logits(run / "final"))
    assert not torch.allclose(logits(file), logits(tmp_path / "ckpt.pt"), atol=1e-3)
    content = read_torch_file(file, plain_objects=["simple_llama.pretraining.config.TrainingConfig"])
    state = content.get("model") or content["model_state_dict"]
    theirs.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in state.items()}, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS), logits(file), atol=1e-4, rtol=0)


def test_the_log_of_a_run_is_written_as_its_system_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    configurable_file(tmp_path / "ckpt.pt")
    run = trained(tmp_path, "ckpt.pt")
    exported(str(run), "--to", "pt", "--out", str(tmp_path / "pt"))
    (path,) = (tmp_path / "pt").glob("run_*.json")
    log = json.loads(path.read_bytes())
    assert log["run_name"] == path.stem
    assert [line["iter"] for line in log["training_iterations"]] == list(range(1, 11))
    assert [line["iter"] for line in log["eval_steps"]] == [0, 4, 8, 10]
    content = read_torch_file(tmp_path / "pt" / "ckpt_000010.pt")
    assert content["iter_num"] == 10
    assert content["best_val_loss"] == min(line["val_loss"] for line in log["eval_steps"])
    assert content["config"]["training"]["max_steps"] == 10


def test_a_head_with_a_bias_is_told_and_spoken_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    per_head_file(tmp_path / "ckpt.pt")
    final = trained(tmp_path, "ckpt.pt") / "final"
    assert (final / "model.pt").is_file()
    assert not list(final.glob("*.safetensors"))
    assert "no architecture of transformers has" in (final / "README.md").read_text()
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(final)
    assert open_speaker(str(final)).policy.model.get_output_embeddings().bias is not None
    assert refused(str(final.parent)) == (
        f"--to folder: {final} holds model.pt, which no architecture of transformers computes; "
        "write --to pt\n"
    )


def test_any_other_base_gives_a_state_dict_with_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path, "base")
    exported(str(run), "--to", "pt", "--out", str(tmp_path / "pt"))
    history = json.loads((tmp_path / "pt" / "training_history.json").read_bytes())
    assert len(history["sft"]["train_loss"]) == 10
    folder = tmp_path / "pt" / "SFT_step_10"
    metadata = json.loads((folder / "metadata.json").read_bytes())
    assert (metadata["step"], list(metadata["metrics"])) == (10, ["dev_loss"])
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True), strict=True)
    (folder / "config.json").write_bytes((run / "final" / "config.json").read_bytes())
    assert torch.equal(logits(folder), logits(run / "final"))


def test_a_file_becomes_a_folder_that_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    theirs = configurable_file(tmp_path / "ckpt.pt", num_key_value_heads=2)
    write_run(tmp_path)
    exported("ckpt.pt", "--out", "folder", "--tokenizer", "base")
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", local_files_only=True)(IDS).logits
        np.testing.assert_allclose(ours.numpy(), theirs(IDS).numpy(), atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "folder").eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ckpt.pt"], "--out: a .pt file has no run directory to write to; name a new folder"),
        (["ckpt.pt", "--to", "pt"], "--to: a .pt file becomes a folder only; write --to folder"),
        (["ckpt.pt", "--verify"], "--verify: a .pt file has no records to be asked; leave it out"),
        (
            ["ckpt.pt", "--out", "folder"],
            "--to folder: the head of ckpt.pt has a bias, which no architecture of transformers has; "
            "train from it as it is, and export the run --to pt",
        ),
        (["run", "--tokenizer", "base"], "--tokenizer: a run has its own; leave it out"),
    ],
)
def test_what_cannot_be_exported_is_told(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    per_head_file(tmp_path / "ckpt.pt")
    assert refused(*arguments) == f"{told}\n"


def test_a_vocabulary_that_the_file_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    simple_file(tmp_path / "ckpt.pt", vocab_size=200)
    write_run(tmp_path, model={"path": "ckpt.pt", "tokenizer": "base"}, data={"max_length": 32})
    with pytest.raises(ConfigError) as caught:
        train(load_config(tmp_path / "run.yaml"))
    largest = load_tokenizer(str(tmp_path / "base")).largest_id
    assert str(caught.value) == (
        f"model.tokenizer: ids up to {largest}, but the embedding has 200 rows; "
        "use the tokenizer that belongs to the model"
    )


def test_a_bare_file_can_be_measured_and_is_asked_for_a_tokenizer_to_talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, data={"max_length": 32, "template": "six-token"})
    configurable_file(tmp_path / "ckpt.pt")
    figures = evaluate(str(tmp_path / "ckpt.pt"), load_config(tmp_path / "run.yaml"))
    assert figures["train_loss"] > 0
    with pytest.raises(ConfigError) as caught:
        open_speaker(f"{tmp_path}/ckpt.pt")
    assert str(caught.value) == (
        f"command line: {tmp_path}/ckpt.pt comes without a tokenizer; write it as a folder with one: "
        f"finetooth export {tmp_path}/ckpt.pt --to folder --out FOLDER --tokenizer TOKENIZER"
    )
