"""An adapter is exported as peft loads it, and merged into its base without becoming another policy."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tests.small_run import write_base, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from finetooth.cli import app
from finetooth.evaluation import plain_reader
from finetooth.export import QLORA_NOTE, export
from finetooth.training import reloading

NUM_TOKENS = 299  # of the small tokenizer
SHORT = ["num_train_epochs=1", "learning_rate=3e-2", "evaluation.every=0"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with run.yaml, and in `untied/` a base with a head of its own and no row to spare."""
    folder = tmp_path_factory.mktemp("adapters")
    with chdir(folder):
        write_run(folder, num_records=80)
        write_base(folder / "untied", vocab_size=NUM_TOKENS, tie_word_embeddings=False)
        yield folder


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the program that reads exports without the seconds that a process of its own takes to start."""

    def run_here(folder: Path, answers: Path) -> None:
        plain_reader.main(folder, json.loads((answers / "request.json").read_text()), answers)

    monkeypatch.setattr(reloading, "_run", run_here)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="finetooth", env={"COLUMNS": "100"})


def trained(out: Path, *settings: str) -> str:
    run = str(out / "run")
    result = command("train", "run.yaml", *SHORT, f"output_dir={run}", *settings)
    assert result.exit_code == 0, result.output
    return run


def measured(result: dict[str, Any], name: str) -> float:
    return next(verdict["measured"] for verdict in result["verdicts"] if verdict["name"] == name)


@pytest.mark.parametrize(
    "settings",
    [
        ["adapter.type=lora"],
        ["adapter.type=dora", "adapter.rslora=true"],
        ["adapter.type=qlora"],
        ["adapter.type=lora", "data.template=six-token"],
        ["adapter.type=lora", "data.template=six-token", "model.path=untied"],
        ["adapter.type=lora", "adapter.modules_to_save=[embed_tokens, lm_head]", "model.path=untied"],
    ],
    ids=lambda settings: " ".join(settings),
)
def test_merged_is_what_was_trained(settings: list[str], tmp_path: Path):
    """Logits to 1e-4, every greedy answer, stop tokens and template; rows of added tokens included."""
    run = trained(tmp_path, *settings, "dev=0.85")
    result = export(run, to="merged", verify=True)
    assert result["failed"] == []
    assert measured(result, "logits") <= 1e-4
    assert measured(result, "greedy answers") == 0
    assert result["num_documents"] == 64
    out = Path(result["out"])
    assert not list(out.glob("adapter*"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    result = export(run, to="adapter", verify=True)
    assert result["failed"] == []


def test_a_merge_without_the_adapter_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: the base alone is written."""
    run = trained(tmp_path, "adapter.type=lora")
    monkeypatch.setattr(
        "peft.PeftModelForCausalLM.merge_and_unload", lambda self: self.unload(), raising=False
    )
    result = command("export", run, "--to", "merged", "--verify")
    assert result.exit_code == 1
    assert "logits" in result.stdout.splitlines()[-1]


def test_the_type_is_that_of_what_is_written_not_of_the_merge(tmp_path: Path):
    run = trained(tmp_path, "adapter.type=lora")
    whole = AutoModelForCausalLM.from_pretrained(export(run, to="merged")["out"]).state_dict()
    out = tmp_path / "bf16"
    result = command("export", run, "--to", "merged", "--dtype", "bf16", "--out", str(out))
    assert result.exit_code == 0, result.output
    half = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, whole[name].bfloat16()) for name, tensor in half.items())


def test_peft_loads_final_and_every_checkpoint(tmp_path: Path):
    run = Path(trained(tmp_path, "adapter.type=lora"))
    (last,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    states = [
        AutoPeftModelForCausalLM.from_pretrained(folder).state_dict() for folder in (run / "final", last)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any("lora_B" in name and tensor.any() for name, tensor in states[0].items())


def test_a_merge_into_4_bits_says_what_differs_and_why(tmp_path: Path):
    run = trained(tmp_path, "adapter.type=qlora")
    result = command("export", run, "--to", "merged")
    assert QLORA_NOTE in result.stdout.replace("\n", " ")


def test_a_form_that_the_run_has_not_is_told(tmp_path: Path):
    run = trained(tmp_path / "adapter", "adapter.type=lora")
    result = command("export", run, "--to", "folder")
    told = f"--to folder: {run} trained an adapter; write --to adapter, or --to merged\n"
    assert (result.exit_code, result.stderr) == (2, told)
    run = trained(tmp_path / "all")
    for form in ("adapter", "merged"):
        result = command("export", run, "--to", form)
        told = f"--to {form}: {run} trained all parameters and has no adapter; write --to folder\n"
        assert (result.exit_code, result.stderr) == (2, told)
