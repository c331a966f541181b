"""Each rule between settings has a case that breaks it and a neighbour that does not."""

from typing import Any

import pytest

from finetooth.config.checks import find_problems
from finetooth.config.keys import SETTINGS

VALID: dict[str, Any] = {key: setting.default for key, setting in SETTINGS.items()} | {
    "model.path": "base",
    "data.train": "train.jsonl",
    "output_dir": "run",
}


def complaints(**changes: Any) -> list[str]:
    values = VALID | {key.replace("__", "."): value for key, value in changes.items()}
    return [
        f"{finding.keys[0]} | {finding.fact}; {finding.remedy}" for finding in find_problems(SETTINGS, values)
    ]


def test_the_defaults_contradict_nothing():
    assert complaints() == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"model__path": None},
            "model.path | model: neither model.path nor model.from_config is given; "
            "name a base model's folder as model.path",
        ),
        (
            {"model__from_config": "config.json", "model__tokenizer": "base"},
            "model.path | model: both model.path and model.from_config are given; "
            "keep one of them; only a .pt file can need both",
        ),
        (
            {"model__path": "ckpt.pt"},
            "model.path | model.path: a .pt file comes without a tokenizer; "
            "name a tokenizer's folder as model.tokenizer",
        ),
        (
            {"model__path": None, "model__from_config": "config.json"},
            "model.from_config | model.from_config: fresh parameters come without a tokenizer; "
            "name a tokenizer's folder as model.tokenizer",
        ),
        (
            {"training__row_tokens": 2047},
            "training.row_tokens | training.row_tokens (2047) is below data.max_length (2048); "
            "raise training.row_tokens or lower data.max_length",
        ),
        (
            {"training__min_learning_rate": 3e-5},
            "training.min_learning_rate | training.min_learning_rate (3e-05) is above "
            "training.learning_rate (2e-05); "
            "lower training.min_learning_rate or raise training.learning_rate",
        ),
        (
            {"training__warmup_steps": 1.5},
            "training.warmup_steps | "
            "training.warmup_steps: 1.5 is neither a share nor a whole number of steps; "
            "write a share below 1 or a whole number",
        ),
        (
            {"data__template": "chatlm"},
            "data.template | data.template: found the text 'chatlm'; "
            "write auto, chatml, six-token, headers, concat or the path of a .jinja file",
        ),
        (
            {"data__template_args": {"a": float("nan")}},
            "data.template_args | data.template_args: holds a number that is infinite or not a number, "
            "or broken text; write values that JSON can hold",
        ),
        (
            {"data__train": [{"path": "a.jsonl", "repeat": 0}]},
            "data.train | data.train[0].repeat: found the number 0; write a whole number at least 1",
        ),
        (
            {"data__train": [{"path": "a.jsonl"}, {"format": "messages"}]},
            "data.train | data.train[1].path: missing; name the file with the records",
        ),
        (
            {"data__dev": [{"path": "a.jsonl", "repeat": 2}]},
            "data.dev | data.dev[0].repeat: dev is never repeated; leave it out",
        ),
        (
            {"data__dev": [{"path": "a.jsonl", "wieght": 2}]},
            "data.dev | data.dev[0].wieght: unknown key; "
            "the keys of a source are path, format, fields, repeat, max_records",
        ),
        (
            {"evaluation__exact_match": "plain", "data__dev": None},
            "evaluation.exact_match | "
            "evaluation.exact_match: data.dev is null, so there are no records to answer; "
            "give data.dev or leave exact_match out",
        ),
        (
            {"evaluation__exact_match": "regex:(a"},
            "evaluation.exact_match | evaluation.exact_match: '(a' is no pattern: missing ), unterminated "
            "subpattern at position 0; write a regular expression as Python reads it",
        ),
        (
            {"evaluation__exact_match": "regex:a{99999999999}"},
            "evaluation.exact_match | evaluation.exact_match: 'a{99999999999}' is no pattern: the repetition "
            "number is too large; write a regular expression as Python reads it",
        ),
        *(
            (
                {"evaluation__exact_match": found},
                "evaluation.exact_match | evaluation.exact_match: "
                f"found the text '{found}'; write answer-tag, plain, gsm8k, last-line, "
                "text such as regex:PATTERN, text such as json:FIELD or null",
            )
            for found in ("answer", "regex:", "json:", "regexp:a", "gsm8k:")
        ),
        *(
            (
                {**asking, "data__dev": None},
                f"{place} | {place}: data.dev is null, so no {figure} is measured; "
                "give data.dev, or write evaluation.best_by: train_loss",
            )
            for place, figure, asking in (
                ("evaluation.patience", "dev_loss", {"evaluation__patience": 2}),
                ("checkpoints.final", "dev_loss", {"checkpoints__final": "best"}),
                ("evaluation.best_by", "dev_perplexity", {"evaluation__best_by": "dev_perplexity"}),
            )
        ),
        (
            {"evaluation__best_by": "stop_rate"},
            "evaluation.best_by | evaluation.best_by: evaluation.exact_match is null, so no stop_rate is "
            "measured; give evaluation.exact_match, or write evaluation.best_by: dev_loss",
        ),
        (
            {"evaluation__best_by": "mean_answer_tokens"},
            "evaluation.best_by | evaluation.best_by: found the text 'mean_answer_tokens'; write dev_loss, "
            "dev_perplexity, train_loss, train_perplexity, exact_match, stop_rate or loop_rate",
        ),
        (
            {"evaluation__patience": 2, "evaluation__every": 0},
            "evaluation.patience | evaluation.patience: evaluation.every is 0, so nothing is evaluated "
            "before the end; write evaluation.every, in steps, or leave patience out",
        ),
        (
            {"parallel__replicate": "across", "parallel__shard": "all"},
            "parallel.replicate | parallel.replicate: across needs shard: node, and shard is the text 'all'; "
            "write shard: node, or leave replicate out",
        ),
        (
            {"parallel__sum_gradients": "pass"},
            "parallel.sum_gradients | parallel.sum_gradients: pass saves memory only where parameters are "
            "shared; write step, or shard: all",
        ),
        (
            {"adapter__type": "lora", "training__precision": "bf16-pure"},
            "training.precision | training.precision: bf16-pure trains all parameters, and an adapter's base "
            "is frozen; write bf16, which keeps the base in bf16",
        ),
        (
            {"training__optimizer": "adamw_8bit", "training__precision": "bf16-pure"},
            "training.optimizer | training.optimizer: adamw_8bit with training.precision (the text "
            "'bf16-pure'): it would round bf16 parameters to nearest, which loses small updates; "
            "write precision: bf16 or optimizer: adamw",
        ),
        (
            {"training__optimizer": "adamw_8bit", "parallel__shard": "all"},
            "training.optimizer | training.optimizer: adamw_8bit with parallel.shard (the text 'all'): "
            "its blocks cannot be divided among processes; leave shard out or write optimizer: adamw",
        ),
        (
            {"training__optimizer": "adamw_8bit", "parallel__offload_optimizer": True},
            "training.optimizer | training.optimizer: adamw_8bit with parallel.offload_optimizer (true): "
            "its states stay on the device; leave offload_optimizer out or write optimizer: adamw",
        ),
    ],
)
def test_a_contradiction_is_told(changes: dict[str, Any], complaint: str):
    assert complaints(**changes) == [complaint]


@pytest.mark.parametrize(
    "changes",
    [
        {"model__path": None, "model__from_config": "config.json", "model__tokenizer": "base"},
        {"training__row_tokens": 2048},
        {"training__min_learning_rate": 2e-5},
        {"training__warmup_steps": 0.03},
        {"training__warmup_steps": 7.0},
        {"training__warmup_steps": 0},
        {"training__device": "cuda:0"},
        {"training__device": "cuda:12"},
        {"data__template": "my/own.jinja"},
        {"data__template": "own:tool_use"},
        {"data__template_args": {"a": [1.5, None, {"b": "ö"}]}},
        {"data__fields": {"prompt": "q", "response": "a"}, "data__format": "prompt-response"},
        {"data__dev": "dev.jsonl", "evaluation__exact_match": "answer-tag"},
        {"evaluation__exact_match": "regex:(?i)the answer is: (.+)"},
        {"evaluation__exact_match": "json:final answer"},
        {"data__dev": None},
        {"data__dev": None, "checkpoints__final": "last"},
        {"data__dev": None, "evaluation__patience": 2, "evaluation__best_by": "train_loss"},
        {"evaluation__best_by": "loop_rate", "evaluation__exact_match": "plain"},
        {"evaluation__patience": 1, "evaluation__every": 1, "checkpoints__final": "best"},
        {"evaluation__every": 0},
    ],
)
def test_what_is_just_allowed_is_not_told(changes: dict[str, Any]):
    assert complaints(**changes) == []


def test_a_contradiction_is_not_sought_among_unusable_values():
    assert complaints(training__row_tokens="few") == [
        "training.row_tokens | training.row_tokens: found the text 'few'; write a whole number at least 1"
    ]


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "cuda:01", "cuda:1\n", "mps:0", "gpu", 0])
def test_a_device_is_one_of_those_named(device: object):
    (complaint,) = complaints(training__device=device)
    assert complaint.startswith("training.device | training.device: found ")
    assert complaint.endswith("; write auto, cuda, mps, cpu or text such as cuda:1")


@pytest.mark.parametrize("packing", ["always", 1, None])
def test_documents_are_packed_or_not(packing: object):
    (complaint,) = complaints(training__packing=packing)
    assert complaint.endswith("; write true, false or auto")


NUMBERS = [
    key
    for key, setting in SETTINGS.items()
    if isinstance(setting.default, int | float) and not isinstance(setting.default, bool)
]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [True, -1, float("inf"), float("nan"), [1], {"a": 1}, 10**400 * -1])
def test_no_number_takes_true_or_a_value_out_of_range(key: str, value: object):
    assert [finding.keys for finding in find_problems(SETTINGS, VALID | {key: value})] == [(key,)]
