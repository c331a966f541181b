"""Prompts are the ids training saw before the targets; answers are held against the record's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.documents import small_policy
from tests.small_run import VOCABULARY
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base.devices import DeviceManager
from finetooth.config.schema import DataConfig, ModelConfig, SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.evaluation import exact_match as module
from finetooth.evaluation.exact_match import answer_documents, answer_figures, share
from finetooth.evaluation.generation import Generation

CPU = DeviceManager("cpu", "fp32")
HISTORY = [
    {"role": "user", "content": "What is two?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "And two?"},
    {"role": "assistant", "content": "The answer is four."},
]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedData:
    monkeypatch.chdir(tmp_path)
    write_small_tokenizer(tmp_path / "base")
    records = [{"messages": HISTORY}, {"messages": [{**HISTORY[0], "content": "Who?"}, HISTORY[1]]}]
    Path("train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = DataConfig(train="train.jsonl", dev=None, template="chatml")
    return prepare_data(SFTConfig(model=ModelConfig(path="base"), data=data, output_dir="run"))


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch):
    """Puts texts in the place of what a policy writes; gives what generation was asked."""

    def say(prepared: PreparedData, *texts: str) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def generate(policy: object, prompts: list[list[int]], **options: Any) -> list[Generation]:
            asked.update(options, prompts=prompts)
            encode = prepared.tokenizer.encode_text
            return [Generation(tuple(encode(text)), stopped=not text.endswith("…")) for text in texts]

        monkeypatch.setattr(module, "generate", generate)
        return asked

    return say


def answer(prepared: PreparedData, numbers: list[int], **options: Any):
    return answer_documents(
        small_policy(vocab_size=VOCABULARY),
        prepared.train,
        numbers=numbers,
        template=prepared.template,
        extractor="plain",
        max_new_tokens=9,
        devices=CPU,
        **options,
    )


def test_the_last_turn_is_asked_with_its_history_and_compared(prepared: PreparedData, generated: Any):
    asked = generated(prepared, "The answer is four.", "two and …")
    first, second = answer(prepared, [0, 1])
    assert asked["prompts"] == [
        document.token_ids[: document.prompt_length].tolist()
        for document in map(prepared.train.document, (0, 1))
    ]
    assert (asked["max_new_tokens"], asked["stop_token_ids"]) == (9, prepared.template.stop_token_ids)
    assert first.as_line() == {
        "origin": "train.jsonl:1",
        "prompt": "<|im_start|>user\nWhat is two?<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
        "<|im_start|>user\nAnd two?<|im_end|>\n<|im_start|>assistant\n",
        "generated": "The answer is four.",
        "reference": "The answer is four.",
        "stopped": True,
        "exact_match": True,
        "extracted": "The answer is four.",
        "num_tokens": len(prepared.tokenizer.encode_text("The answer is four.")),
        "loops": False,
    }
    assert (second.reference, second.generated) == ("four", "two and …")
    assert (second.exact_match, second.stopped) == (False, False)
    assert share([first, second], "exact_match") == share([first, second], "stopped") == 0.5


def test_answers_keep_the_order_of_the_numbers(prepared: PreparedData, generated: Any):
    generated(prepared, "four", "four")
    assert [one.origin for one in answer(prepared, [1, 0])] == ["train.jsonl:2", "train.jsonl:1"]


def test_a_policy_really_answers(prepared: PreparedData):
    told: list[int] = []
    answered = answer(prepared, [0, 1], on_progress=told.append)
    assert told == [2]
    assert not any(one.exact_match for one in answered)
    assert all(one.generated or one.stopped for one in answered)


def test_the_figures_of_answers(prepared: PreparedData, generated: Any):
    loop = "two " * 20 + "…"
    generated(prepared, "The answer is four.", loop)
    encode = prepared.tokenizer.encode_text
    assert answer_figures(answer(prepared, [0, 1])) == {
        "exact_match": 0.5,
        "stop_rate": 0.5,
        "loop_rate": 0.0,  # the text ends in another character
        "mean_answer_tokens": (len(encode("The answer is four.")) + len(encode(loop))) / 2,
        "num_answers": 2,
    }
    generated(prepared, "The answer is four.", " two" * 20)
    assert answer_figures(answer(prepared, [0, 1]))["loop_rate"] == 0.5


def test_the_share_of_nothing_is_zero():
    assert share([], "exact_match") == 0
    assert set(answer_figures([]).values()) == {0}
