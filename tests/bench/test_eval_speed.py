"""The benchmark of answering: both ways give the same answers, and it refuses to time ways that do not."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.documents import small_policy

from finetooth.base.devices import DeviceManager
from finetooth.evaluation.generation import Generation, generate
from finetooth.model.policy import PolicyModel

BENCH = Path(__file__).resolve().parents[2] / "bench"
STOP = (5,)
PROMPTS = [[1 + (7 * number + place) % 60 for place in range(1 + 5 * number % 17)] for number in range(24)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("eval_speed")


def answer(policy: PolicyModel, prompts: Sequence[Sequence[int]]) -> list[Generation]:
    return generate(
        policy, prompts, max_new_tokens=24, stop_token_ids=STOP, devices=DeviceManager("cpu", "fp32")
    )


def measured(bench: Any, policy: PolicyModel) -> dict[str, Any]:
    return bench.measure(
        policy, PROMPTS, lambda some: answer(policy, some), stop_token_ids=STOP, num_alone=12
    )


def test_both_ways_are_timed_and_answers_are_the_same(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    options = {
        "--size": "tiny",
        "--num-prompts": 40,
        "--one-by-one": 10,
        "--max-new-tokens": 12,
        "--num-steps": 2,
        "--device": "cpu",
        "--out": tmp_path / "speed.json",
    }
    bench.main([str(part) for option in options.items() for part in option])
    result = json.loads((tmp_path / "speed.json").read_text())
    assert {name: each["answers"] for name, each in result["rates"].items()} == {
        "many at a time": 40,
        "one at a time": 10,
    }
    assert result["ratio"] > 0
    assert result["same"]["one at a time"]["share"] >= 0.9
    printed = capsys.readouterr().out
    assert "times as many answers per second" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_answers_given_together_are_those_given_alone(bench: Any):
    """Of a fresh model, whose logits lie close to one another."""
    same = measured(bench, small_policy(tie_word_embeddings=False))["same"]
    assert all(gap < bench.TIE for each in same.values() for gap in each["gaps"])
    assert min(each["share"] for each in same.values()) > 0.9


def test_a_broken_mask_of_padding_is_found(bench: Any, monkeypatch: pytest.MonkeyPatch):
    """Negative control: rows that see the padding before them."""
    original = PolicyModel.generate

    def careless(
        self: PolicyModel, ids: torch.Tensor, *, attention_mask: torch.Tensor, **options: Any
    ) -> Any:
        return original(self, ids, attention_mask=torch.ones_like(attention_mask), **options)

    monkeypatch.setattr(PolicyModel, "generate", careless)
    with pytest.raises(SystemExit) as caught:
        measured(bench, small_policy(tie_word_embeddings=False))
    assert str(caught.value).startswith("prompt of ")
    assert str(caught.value).endswith(" apart; this is not the same work")


@pytest.mark.parametrize("wrong", ["a token", "a stop"])
def test_an_answer_that_is_not_the_likeliest_is_found(bench: Any, wrong: str):
    policy = small_policy(tie_word_embeddings=False)
    (right,) = answer(policy, PROMPTS[3:4])
    assert bench.require_likeliest(policy, [(PROMPTS[3], right)], stop_token_ids=STOP).share == 1
    ids = right.token_ids[:4]
    other = (
        Generation((*ids, ids[-1] + 1), stopped=False)
        if wrong == "a token"
        else Generation(ids, stopped=True)
    )
    with pytest.raises(SystemExit, match="answers part at token 5"):
        bench.require_likeliest(policy, [(PROMPTS[3], other)], stop_token_ids=STOP)
