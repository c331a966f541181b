"""Documents share rows only where the model keeps them apart; elsewhere, each has a row of its own."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tests.architectures import (
    EXPERTS,
    GROUPED,
    NOT_ALONE,
    OUT_OF_REACH,
    UNPACKED,
    Family,
    ids,
    random_policy,
)
from tests.documents import random_documents, small_policy
from tests.small_run import write_run
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.batching.collate import collate
from finetooth.cli import app
from finetooth.model import isolation
from finetooth.model.isolation import settle_packing
from finetooth.model.loss import LogitTransform
from finetooth.model.policy import PolicyModel

CPU = DeviceManager("cpu", "fp32")
(BLOOM,) = (family.config for family in UNPACKED if family.name == "Bloom")


@pytest.mark.parametrize("family", UNPACKED, ids=ids(UNPACKED))
def test_a_model_that_cannot_keep_documents_apart_gives_each_a_row_or_is_refused_by_its_name(family: Family):
    """That its loss and gradients are transformers' own, `test_architectures` shows."""
    policy, documents = random_policy(family.config), random_documents(4, vocab_size=50)
    settle_packing(policy, devices=CPU)
    assert family.why_not_packed is not None
    assert (policy.why_not_packed or "").startswith(family.why_not_packed)
    own_rows = float(policy(collate([(0,), (1,), (2,), (3,)], documents)).detach())
    with_empty_row = float(policy(collate([(0,), (1,), (2,), (3,), ()], documents)).detach())
    assert with_empty_row == pytest.approx(own_rows, rel=1e-5)
    with pytest.raises(ConfigError) as caught:
        settle_packing(policy, devices=CPU, must_pack=True)
    assert str(caught.value) == (
        f"model: {type(policy.model).__name__}: {policy.why_not_packed}; "
        "write training.packing: auto, which gives each document a row of its own"
    )


def test_what_leaks_through_a_short_convolution_is_found():
    """In fresh parameters it is small."""
    (config,) = (family.config for family in UNPACKED if family.name == "LFM2")
    torch.manual_seed(0)
    policy = PolicyModel(AutoModelForCausalLM.from_config(config))
    settle_packing(policy, devices=CPU)
    assert (policy.why_not_packed or "").startswith("packed documents change with each other (by ")


def test_a_window_that_attention_is_not_told_of_is_found():
    """Only the mask that this model makes for its own attention knows it; it is wider than the documents."""
    config = transformers.Qwen2MoeConfig(
        **GROUPED,
        **EXPERTS,
        num_experts=4,
        shared_expert_intermediate_size=8,
        use_sliding_window=True,
        sliding_window=32,
        max_window_layers=1,
    )
    policy = random_policy(config)
    settle_packing(policy, devices=CPU)
    assert (policy.why_not_packed or "").startswith(NOT_ALONE)
    assert policy.model.config.sliding_window == 32


def test_such_a_model_takes_no_packed_row():
    policy = random_policy(BLOOM)
    settle_packing(policy, devices=CPU)
    with pytest.raises(ConfigError) as caught:
        policy(collate([(0, 1), ()], random_documents(2, vocab_size=50)))
    assert str(caught.value) == (
        "batch: documents of this model cannot share a row; lay them out without packing"
    )


def test_a_model_that_looks_ahead_is_refused_altogether():
    """With padding behind it, a document is not what it is alone."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    with pytest.raises(ConfigError, match="documents with padding behind them differ from those of each"):
        settle_packing(random_policy(config), devices=CPU)


def test_a_leak_between_documents_is_found(monkeypatch: pytest.MonkeyPatch):
    """Negative control of the proof: attention that ignores the borders is no attention for packing."""
    policy = small_policy()
    settle_packing(policy, devices=CPU)
    assert policy.why_not_packed is None
    whole = isolation.collate

    def leaking(*arguments: object, **options: object):
        batch = whole(*arguments, **options)  # type: ignore[arg-type]
        num_tokens = batch.token_ids_BT.numel()
        offsets = torch.tensor([0, num_tokens], dtype=torch.int32)
        layout = replace(batch.layout, lengths=(num_tokens,), offsets_S1=offsets, longest=num_tokens)
        return replace(batch, layout=layout)

    monkeypatch.setattr(isolation, "collate", leaking)
    with pytest.raises(ConfigError, match=NOT_ALONE):
        settle_packing(policy, devices=CPU, must_pack=True)


def test_a_small_leak_is_found(monkeypatch: pytest.MonkeyPatch):
    """Negative control: a thousandth of the token before is seen across a border."""
    policy = small_policy()
    own = policy.model.base_model.layers[0].mlp.forward

    def convolve(hidden: torch.Tensor) -> torch.Tensor:
        return own(hidden + 1e-3 * hidden.roll(1, dims=1))

    monkeypatch.setattr(policy.model.base_model.layers[0].mlp, "forward", convolve)
    with pytest.raises(ConfigError, match=r"packed documents change with each other \(by "):
        settle_packing(policy, devices=CPU, must_pack=True)


def test_a_wrong_head_is_found():
    """Negative control of the proof: a loss that is not the model's own is refused, packed or not."""
    policy = small_policy()
    policy._logit_transform = LogitTransform(scale=0.9)
    with pytest.raises(ConfigError, match="the loss differs from the model's own"):
        settle_packing(policy, devices=CPU)


def test_memory_that_runs_out_is_no_reason_to_unpack(monkeypatch: pytest.MonkeyPatch):
    policy = small_policy()

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(type(policy), "hidden_states", out_of_memory)
    with pytest.raises(RuntimeError, match="not enough memory"):
        settle_packing(policy, devices=CPU)


def test_a_run_says_that_its_documents_have_rows_of_their_own(tmp_path: Path):
    write_run(tmp_path, model={"path": None, "from_config": "gptj.json", "tokenizer": "base"})
    config = transformers.GPTJConfig(n_embd=16, n_layer=2, n_head=2, rotary_dim=4, vocab_size=320)
    config.to_json_file(tmp_path / "gptj.json")
    arguments = ["train", "run.yaml", "max_steps=2"]
    with contextlib.chdir(tmp_path):
        refused = CliRunner().invoke(app, [*arguments, "packing=true"])
        assert refused.exit_code == 2
        assert "write training.packing: auto" in refused.stderr
        notice = (
            f"GPTJForCausalLM: {OUT_OF_REACH}; each document has a row of its own, which costs speed alone"
        )
        done = CliRunner().invoke(app, arguments)
        assert (done.exit_code, done.stderr) == (0, "")
        assert notice in done.stdout.splitlines()
        rows = CliRunner().invoke(app, [*arguments, "packing=false", "rows_at_once=3", "output_dir=three"])
        assert rows.exit_code == 0, rows.stderr
        assert notice not in rows.stdout
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "three")
    )
    for one, other in zip(first, second, strict=True):
        for name in one.keys() & {"loss", "grad_norm", "train_loss", "dev_loss"}:
            assert one[name] == pytest.approx(other[name], rel=1e-5)
