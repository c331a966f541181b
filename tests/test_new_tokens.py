"""Tokens that a template adds are trained, saved, and used by everything that reads the run afterwards."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.small_run import write_base, write_run
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from finetooth.cli import app
from finetooth.config.load import load_config
from finetooth.data.records import Message
from finetooth.data.templates.template import encode_prompt
from finetooth.evaluation.speaker import open_speaker
from finetooth.train import train
from finetooth.training.trainer import SFTTrainer

TOKENS = ["<SOU>", "<EOU>", "<SOA>", "<EOA>", "<SOT>", "<EOT>"]
CHECKPOINT = "run/checkpoints/step-000004"
KNOWN = 299  # rows that the base's tokenizer uses


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="finetooth", env={"COLUMNS": "200"})


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def figures(*arguments: str) -> dict[str, Any]:
    result = command("eval", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run of the six-token template, whose base has no row to spare."""
    folder = tmp_path_factory.mktemp("tokens")
    with contextlib.chdir(folder):
        write_run(folder, data={"template": "six-token"}, checkpoints={"every": 2, "keep": 9})
        write_base(folder / "base", vocab_size=KNOWN)
        result = command("train", "run.yaml")
        assert result.exit_code == 0, result.output
        (folder / "printed.txt").write_text(result.output)
        yield folder


def test_the_run_says_which_tokens_are_new(folder: Path):
    notes = read_json(folder / "run" / "environment.json")["template"]
    assert notes == {"name": "six-token", "now": None, "added_tokens": TOKENS, "untrained_tokens": []}
    said = f"{' '.join(TOKENS)}: added to the tokenizer; their embeddings begin as the mean of all"
    assert said in (folder / "printed.txt").read_text().splitlines()


def test_plain_transformers_encodes_each_as_one_token_and_their_rows_were_trained(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "final")
    ids = [tokenizer.encode(name) for name in TOKENS]
    assert ids == [[KNOWN + index] for index in range(6)]
    parameters = load_file(folder / "run" / "final" / "model.safetensors")
    rows = parameters["model.embed_tokens.weight"]
    assert rows.shape[0] == KNOWN + 6 == read_json(folder / "run" / "final" / "config.json")["vocab_size"]
    mean = load_file(folder / "base" / "model.safetensors")["model.embed_tokens.weight"].mean(dim=0)
    assert all(float((rows[KNOWN + index] - mean).norm()) > 1e-3 for index in range(4)), "used ones moved"
    stops = read_json(folder / "run" / "final" / "generation_config.json")["eos_token_id"]
    assert stops[0] == KNOWN + TOKENS.index("<EOA>")


def test_a_resumed_run_keeps_what_the_rows_have_learnt(folder: Path):
    shutil.copytree(folder / "run", folder / "stopped", symlinks=True)
    steps = sorted((folder / "stopped" / "checkpoints").glob("step-*"))
    for path in (steps[-1], folder / "stopped" / "final"):
        shutil.rmtree(path)
    shutil.rmtree(folder / "other", ignore_errors=True)
    config = load_config(folder / "run.yaml", ["output_dir=stopped"])
    train(config, resume="must")
    before, after = (load_file(folder / name / "final" / "model.safetensors") for name in ("run", "stopped"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    notes = [read_json(folder / name / "environment.json")["template"] for name in ("run", "stopped")]
    assert notes[0] == notes[1]


def test_eval_measures_the_run_with_its_rows_and_the_base_with_new_ones(folder: Path):
    summary = read_json(folder / "run" / "summary.json")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert figures("run")["dev_loss"] == pytest.approx(summary["dev_loss"], rel=1e-6)
    at_first = next(line["dev_loss"] for line in lines if "dev_loss" in line)
    assert figures("base", "--config", "run.yaml")["dev_loss"] == pytest.approx(at_first, rel=1e-6)


def test_eval_measures_a_checkpoint_with_its_rows(folder: Path):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    in_training = next(line["dev_loss"] for line in lines if "dev_loss" in line and line["step"] == 4)
    assert figures(CHECKPOINT)["dev_loss"] == pytest.approx(in_training, rel=1e-6)


def test_rows_given_anew_would_be_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: a trained policy whose rows are the mean again has another loss."""
    monkeypatch.setattr("finetooth.evaluation.judging.knows_tokens", lambda target, template: False)
    summary = read_json(folder / "run" / "summary.json")
    assert figures("run")["dev_loss"] != pytest.approx(summary["dev_loss"], rel=1e-4)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    in_training = next(line["dev_loss"] for line in lines if "dev_loss" in line and line["step"] == 4)
    assert figures(CHECKPOINT)["dev_loss"] != pytest.approx(in_training, rel=1e-4)


def test_chat_and_compare_speak_with_the_tokens(folder: Path):
    speaker = open_speaker("run")
    prompt = encode_prompt(speaker.template, [Message("user", "What is 1?")])
    assert [prompt[0], prompt[-1]] == [KNOWN + TOKENS.index("<SOU>"), KNOWN + TOKENS.index("<SOA>")]
    assert speaker.template.stop_token_ids[0] == KNOWN + TOKENS.index("<EOA>")
    result = command("compare", "base", "run", "--prompt", "What is 1?", "--json")
    assert result.exit_code == 0, result.output


def test_a_trainer_that_loads_its_own_policy_gives_it_the_rows(folder: Path):
    config = load_config(folder / "run.yaml", ["output_dir=alone"])
    policy = SFTTrainer(config).policy
    assert policy.vocab_size == KNOWN + 6
    rows = policy.model.get_input_embeddings().weight
    assert torch.allclose(rows[KNOWN:], rows[:KNOWN].mean(dim=0).expand(6, -1), atol=1e-7)


def test_a_stop_token_that_the_base_never_learnt_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, training={"max_steps": 2})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    parameters = load_file(tmp_path / "base" / "model.safetensors")
    parameters["model.embed_tokens.weight"][tokenizer.convert_tokens_to_ids("<|im_end|>")] = 0
    save_file(parameters, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    result = command("train", "run.yaml")
    assert result.exit_code == 0, result.output
    notice = (
        "<|im_end|>: the base model seems never to have trained their embeddings; "
        "train on enough answers that the policy learns to stop, or use template headers"
    )
    lines = result.output.splitlines()
    assert notice in lines
    assert lines.index(notice) < next(i for i, line in enumerate(lines) if line.startswith("policy: "))
    notes = read_json(tmp_path / "run" / "environment.json")["template"]
    assert notes["untrained_tokens"] == ["<|im_end|>"]


def test_a_tokenizer_that_is_too_large_for_another_reason_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, data={"template": "six-token"})
    write_base(tmp_path / "base", vocab_size=KNOWN - 1)
    result = command("train", "run.yaml")
    assert result.exit_code == 2
    assert (
        "model.tokenizer: ids up to 298, but the embedding has 298 rows; "
        "use the tokenizer that belongs to the model"
    ) in result.output
