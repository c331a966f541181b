"""`verify` passes what holds, fails what is broken on purpose in the right row, and leaves no trace."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.small_run import write_run
from typer.testing import CliRunner

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE
from finetooth.cli import app
from finetooth.config.load import load_config
from finetooth.data.preparation import prepare_data
from finetooth.data.records import Document
from finetooth.data.store import DocumentStore
from finetooth.data.templates.template import Template
from finetooth.model import attention
from finetooth.reporting import mask_proof
from finetooth.reporting.verdicts import Verdict
from finetooth.training import equivalence
from finetooth.training.equivalence import Computed, compare
from finetooth.training.parallel import SharedPolicy
from finetooth.verify import _Measured, _why_alone, verify

COMPUTED = [
    *("masks", "stop tokens", "packed = padded", "accumulation", "micro-batches", "own loss"),
    *("isolation", "reload"),
]
TRIED = ["resume", "2 processes"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run file; at its end nothing else has been written, temporary files included."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "run").mkdir()
    write_run(tmp_path / "run", num_records=24)
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path / "run"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the trial runs, which take half a minute."""
    monkeypatch.setattr("finetooth.verify._judge_runs", lambda *_: iter(()))


def failing(*overrides: str) -> list[str]:
    return verify(load_config("run.yaml", list(overrides)))["failed"]


@pytest.mark.slow
def test_everything_holds(folder: Path):
    result = CliRunner().invoke(app, ["verify", "run.yaml", "--json"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert [verdict["name"] for verdict in printed["verdicts"]] == [*COMPUTED, *TRIED]
    assert {verdict["state"] for verdict in printed["verdicts"]} == {"passed"}
    assert (printed["passed"], printed["failed"], printed["num_documents"]) == (True, [], 8)
    *table, blank, sampled, where, last = result.stderr.splitlines()
    assert max(len(line.rstrip()) for line in result.stderr.splitlines()) <= 80
    assert len(table) > len(printed["verdicts"])
    assert blank == ""
    assert sampled.startswith("computed: 8 of 20 documents, ")
    assert where.startswith("on cpu, ")
    assert last == "all that was measured holds"


BREAKING = """
import sys
if "train" in sys.argv:
    from dataclasses import replace
    from finetooth.training import checkpoint, parallel
    latest, backward = checkpoint.CheckpointManager.latest, parallel.SharedPolicy.backward
    def replaying(self, **options):
        found = latest(self, **options)
        state = found and replace(found.state, next_step=found.state.next_step - 1)
        return found and replace(found, state=state)
    def mean_over_ranks(self, loss_sum):
        backward(self, loss_sum / self.ranks.world_size)
    checkpoint.CheckpointManager.latest = replaying
    parallel.SharedPolicy.backward = mean_over_ranks
"""


@pytest.mark.slow
def test_a_replayed_step_and_a_mean_over_ranks_are_noticed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """Negative control: the processes that train go on one step too early, and divide by their number."""
    blocked = tmp_path_factory.mktemp("breaking")
    (blocked / "sitecustomize.py").write_text(BREAKING)
    monkeypatch.setenv("PYTHONPATH", str(blocked))
    result = CliRunner().invoke(app, ["verify", "run.yaml"], env={"COLUMNS": "80"})
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "failed: resume, 2 processes"


@pytest.mark.usefixtures("untried")
def test_a_leak_in_longer_rows_than_those_at_load_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: documents of more than 12 tokens see those before them."""
    whole = attention._each_document

    def leaking(*tensors_and_layout: Any, **options: Any):
        *tensors, layout = tensors_and_layout
        if layout.longest > 12:
            num_tokens = sum(layout.lengths)
            layout = replace(layout, lengths=(num_tokens,), longest=num_tokens)
        return whole(*tensors, layout, **options)

    monkeypatch.setattr(attention, "_each_document", leaking)
    assert failing() == ["packed = padded", "accumulation", "micro-batches", "isolation"]


@pytest.mark.usefixtures("untried")
def test_a_mean_of_means_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: each forward pass gives the mean of its own targets."""
    loss_sum = SharedPolicy.loss_sum
    monkeypatch.setattr(
        SharedPolicy,
        "loss_sum",
        lambda self, batch, **options: loss_sum(self, batch, **options) / len(batch.targets_N),
    )
    assert failing() == ["accumulation", "micro-batches", "own loss"]


@pytest.mark.usefixtures("untried")
def test_another_stop_token_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: what is to end an answer is not what is trained; such records are refused, too."""
    prepare_data(load_config("run.yaml"))  # what is read again is held against a store that was good
    other = property(lambda self: (self.tokenizer.control_tokens["<|im_start|>"],))
    monkeypatch.setattr(Template, "stop_token_ids", other)
    assert failing() == ["masks", "stop tokens"]


def with_late_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the first two targets of every stored document out."""
    read = DocumentStore.document

    def late(self: DocumentStore, number: int, /) -> Document:
        document = read(self, number)
        loss_weights = document.loss_weights.copy()
        loss_weights[np.flatnonzero(loss_weights)[:2]] = 0
        return replace(document, loss_weights=loss_weights)

    monkeypatch.setattr(DocumentStore, "document", late)


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("is_only_read", [False, True])
def test_a_mask_that_begins_late_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_only_read: bool
):
    """Negative control, by rendering the records anew, or by reading the decoded targets alone."""
    with_late_masks(monkeypatch)
    if is_only_read:
        monkeypatch.setattr(mask_proof, "_is_same", lambda *_: True)
    else:
        monkeypatch.setattr(mask_proof, "_holds_answers", lambda *_: True)
    assert "masks" in failing()


@pytest.mark.usefixtures("untried")
def test_a_final_policy_that_is_another_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: what is written is not what was trained."""
    whole = equivalence.save_final

    def stale(path: Path, *, policy: Any, **options: Any) -> None:
        with torch.no_grad():
            policy.model.get_input_embeddings().weight[3] += 0.1
            whole(path, policy=policy, **options)
            policy.model.get_input_embeddings().weight[3] -= 0.1

    monkeypatch.setattr(equivalence, "save_final", stale)
    assert failing() == ["reload"]


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_model_with_rows_of_its_own_is_verified_too(folder: Path, precision: str):
    config = transformers.GPTJConfig(n_embd=16, n_layer=2, n_head=2, rotary_dim=4, vocab_size=320)
    config.to_json_file(folder / "gptj.json")
    overrides = ["model.path=null", "model.from_config=gptj.json", "model.tokenizer=base"]
    result = verify(load_config("run.yaml", [*overrides, f"precision={precision}"]))
    (folder / "gptj.json").unlink()
    verdicts = result["verdicts"]
    skipped = {verdict["name"]: verdict["what"] for verdict in verdicts if verdict["state"] == "skipped"}
    assert result["passed"]
    assert skipped == {"packed = padded": "its attention cannot be kept within packed documents"}


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("is_balanced", [False, True])
def test_a_mixture_of_experts_is_verified_to_rounding(folder: Path, is_balanced: bool):
    """An auxiliary loss, which depends on the layout, is left out."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=8,
        num_experts_per_tok=2,
        output_router_logits=is_balanced,
    )
    config.to_json_file(folder / "moe.json")
    overrides = ["model.path=null", "model.from_config=moe.json", "model.tokenizer=base"]
    result = verify(load_config("run.yaml", overrides))
    (folder / "moe.json").unlink()
    assert result["failed"] == []
    assert {verdict["name"]: verdict["limit"] for verdict in result["verdicts"]}["isolation"] == 1e-6


def test_two_processes_are_not_held_against_one_where_experts_are_balanced():
    why = "the auxiliary loss of experts depends on which documents share a row"
    measured = _Measured(num_parameters=1, seconds_per_step=1.0, is_balanced=True)
    assert _why_alone(DeviceManager("cpu", "fp32"), measured) == why
    assert _why_alone(DeviceManager("cpu", "fp32"), replace(measured, is_balanced=False)) is None


def test_trial_runs_that_fail_or_find_no_room_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that cannot be trained fails its rows; a disk without room for checkpoints skips them."""
    prepare_data(load_config("run.yaml"))
    monkeypatch.setenv("WORLD_SIZE", "nonsense")
    monkeypatch.setattr("finetooth.verify.ranks_of_environment", lambda: ALONE)
    verdicts = verify(load_config("run.yaml"))["verdicts"][-2:]
    assert [verdict["state"] for verdict in verdicts] == ["failed", "failed"]
    assert verdicts[0]["what"].startswith("trial run: exit code 2: environment: ")
    monkeypatch.setattr("finetooth.verify._ROOM_OF_TRIALS", 1e12)
    verdicts = verify(load_config("run.yaml"))["verdicts"][-2:]
    assert [verdict["state"] for verdict in verdicts] == ["skipped", "skipped"]
    assert "GB are free" in verdicts[0]["what"]


def test_what_is_not_a_number_is_no_pass():
    assert Verdict("a", float("nan"), 1.0, "").state == "failed"
    assert json.loads(json.dumps(Verdict("a", float("nan"), 1.0, "").as_data(), allow_nan=False))
    whole, broken = (
        {"a": torch.ones(2), "b": torch.ones(2)},
        {"a": torch.ones(2), "b": torch.full((2,), torch.nan)},
    )
    differences = (Computed(1.0, each) for each in (whole, broken))
    measured = [compare(one, Computed(1.0, whole)) for one in differences]
    assert measured[0].measured == 0
    assert measured[1].place == "b"
    assert Verdict("a", measured[1].measured, 1.0, "").state == "failed"
