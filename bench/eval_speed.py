"""Measures answering many prompts at a time beside one at a time, and proves that the answers are the same.

python bench/eval_speed.py --records test.jsonl --one-by-one 40 --out speed.json
python bench/eval_speed.py --size tiny --num-prompts 32 --max-new-tokens 16 --num-steps 0

One at a time takes long, so only some of the prompts are asked so, at even distances in the order of their
lengths. Each token of every answer is compared besides with the likeliest one of a single pass over its
prompt and answer alone, without padding and cache. Where two differ, it must be a near tie: the logits of
both lie less than 1e-4 apart. Otherwise nothing is reported.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import base_model
from finetooth.base.devices import DeviceManager
from finetooth.base.files import write_atomically
from finetooth.config.load import config_of
from finetooth.config.schema import ModelConfig
from finetooth.data.preparation import prepare_data
from finetooth.evaluation.generation import Generation, generate
from finetooth.model.load import load_policy
from finetooth.model.policy import PolicyModel
from finetooth.train import train
from work import SEED, SIZES, made_records, read_records

TIE = 1e-4
TOGETHER, ALONE = "many at a time", "one at a time"
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Sameness:
    """How many of some answers are the same, and how far the logits of the first other token lie apart."""

    num_answers: int
    gaps: list[float]

    @property
    def share(self) -> float:
        """Of answers that are the same."""
        return 1 - len(self.gaps) / self.num_answers


def main(arguments: Sequence[str] | None = None) -> None:
    """Answers all prompts together and some alone, checks them, prints and writes the result."""
    options = _parse(arguments)
    devices = DeviceManager(options.device, "fp32")
    with tempfile.TemporaryDirectory() as name:
        folder, prompts, stop_token_ids = _make(Path(name), options)
        policy = load_policy(ModelConfig(path=str(folder)), devices=devices)
    asked = {"max_new_tokens": options.max_new_tokens, "stop_token_ids": stop_token_ids, "devices": devices}
    result = {
        "device": devices.describe(),
        "versions": {name: version(name) for name in ("finetooth", "torch", "transformers")},
        "options": {name: str(value) for name, value in vars(options).items()},
        **measure(
            policy,
            prompts,
            lambda some: generate(policy, some, **asked),
            stop_token_ids=stop_token_ids,
            num_alone=options.one_by_one,
        ),
    }
    Console().print(_table(result))
    if options.out:
        write_atomically(Path(options.out), (json.dumps(result, indent=1) + "\n").encode())


def measure(
    policy: PolicyModel,
    prompts: Prompts,
    answer: Callable[[Prompts], list[Generation]],
    *,
    stop_token_ids: Sequence[int],
    num_alone: int,
) -> dict[str, Any]:
    """Seconds and tokens of both ways, and what was found the same; SystemExit where it is not.

    answer: continues prompts, as many at a time as it likes.
    """
    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    alone = by_length[:: max(1, len(prompts) // num_alone)][:num_alone]
    answer([prompts[number] for number in alone[:2]])  # warms up
    seconds: dict[str, float] = {}
    answers: dict[str, dict[int, Generation]] = {}
    started = time.perf_counter()
    answers[TOGETHER] = dict(enumerate(answer(prompts)))
    seconds[TOGETHER] = time.perf_counter() - started
    started = time.perf_counter()
    answers[ALONE] = {number: answer([prompts[number]])[0] for number in alone}
    seconds[ALONE] = time.perf_counter() - started
    pairs = [(prompts[number], answers[TOGETHER][number], answers[ALONE][number]) for number in alone]
    answered = list(zip(prompts, answers[TOGETHER].values(), strict=True))
    same = {
        ALONE: require_same(policy, pairs),
        "single passes": require_likeliest(policy, answered, stop_token_ids=stop_token_ids),
    }
    rates = {
        name: {
            "answers": len(given),
            "tokens": sum(len(one.token_ids) for one in given.values()),
            "stopped": sum(one.stopped for one in given.values()),
            "seconds": seconds[name],
        }
        for name, given in answers.items()
    }
    per_answer = {name: each["seconds"] / each["answers"] for name, each in rates.items()}
    return {
        "rates": rates,
        "ratio": per_answer[ALONE] / per_answer[TOGETHER],
        "same": {name: {"share": each.share, "gaps": each.gaps} for name, each in same.items()},
    }


def require_same(
    policy: PolicyModel, pairs: Sequence[tuple[Sequence[int], Generation, Generation]]
) -> Sameness:
    """Compares two answers to each prompt; SystemExit where they part at what is no near tie."""
    gaps: list[float] = []
    for prompt, one, other in pairs:
        if one != other:
            place = _first_difference(one, other)
            logits_V = _logits(policy, [*prompt, *one.token_ids[:place]])[-1]
            best = logits_V.topk(2).values
            gaps.append(_require_tie(float(best[0] - best[1]), len(prompt), place))
    return Sameness(len(pairs), gaps)


def require_likeliest(
    policy: PolicyModel,
    answered: Sequence[tuple[Sequence[int], Generation]],
    *,
    stop_token_ids: Sequence[int],
) -> Sameness:
    """Compares answers with the likeliest tokens of one pass; SystemExit where they part at no near tie."""
    stops = torch.tensor(list(stop_token_ids), device=policy.device)
    gaps: list[float] = []
    for prompt, answer in answered:
        logits_TV = _logits(policy, [*prompt, *answer.token_ids])[len(prompt) - 1 :]
        written = torch.tensor([*answer.token_ids, *([0] if answer.stopped else [])], device=policy.device)
        logits_TV = logits_TV[: len(written)]
        given_T = logits_TV.gather(1, written.long()[:, None])[:, 0]
        if answer.stopped:
            given_T[-1] = logits_TV[-1, stops].max()
        below_T = logits_TV.amax(dim=1) - given_T
        if bool((below_T > 0).any()):
            gaps.append(_require_tie(float(below_T.max()), len(prompt), int(below_T.argmax())))
    return Sameness(len(answered), gaps)


def _require_tie(gap: float, prompt_length: int, place: int) -> float:
    if gap >= TIE:
        raise SystemExit(
            f"prompt of {prompt_length} tokens: answers part at token {place + 1}, where logits lie {gap:.2g}"
            " apart; this is not the same work"
        )
    return gap


def _first_difference(one: Generation, other: Generation) -> int:
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    parted = (place for place, (first, second) in enumerate(pairs) if first != second)
    return next(parted, min(len(one.token_ids), len(other.token_ids)))


@torch.no_grad()
def _logits(policy: PolicyModel, token_ids: Sequence[int]) -> torch.Tensor:
    """float32 [T, V] of tokens alone."""
    out = policy(input_ids=torch.tensor([list(token_ids)], device=policy.device))
    assert not isinstance(out, torch.Tensor), "tokens without labels give logits"
    assert out.logits is not None
    return out.logits[0].float()


def _make(folder: Path, options: argparse.Namespace) -> tuple[Path, Prompts, tuple[int, ...]]:
    """The folder of a model, trained for some steps; prompts as ids; the tokens that end an answer."""
    if options.records is None:
        records = made_records(max(options.num_prompts, 64), median=60, longest=300)
    else:
        records = read_records(options.records)
    path, base = folder / "records.jsonl", folder / "base"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    base_model.main(options.size, path, base, SEED)
    values = {
        "model.path": str(base),
        "data.train": str(path),
        "data.dev": None,
        "data.cache_dir": str(folder / "cache"),
        "data.on_duplicate": "keep",
        "training.max_steps": max(1, options.num_steps),
        "training.global_batch_size": 16,
        "training.learning_rate": 1e-3,
        "training.warmup_steps": 0,
        "training.seed": SEED,
        "training.device": options.device,
        "evaluation.every": 0,
        "checkpoints.every": 0,
        "output_dir": str(folder / "run"),
    }
    config = config_of(values)
    prepared = prepare_data(config)
    documents = map(prepared.train.document, range(prepared.train.num_documents))
    prompts = [document.token_ids[: document.prompt_length].tolist() for document in documents]
    if options.num_steps:
        train(config)
    trained = folder / "run" / "final" if options.num_steps else base
    return trained, prompts[: options.num_prompts], prepared.template.stop_token_ids


def _table(result: dict[str, Any]) -> Table:
    caption = [f"{result['ratio']:.1f} times as many answers per second ({ALONE}: of some prompts)"]
    for name, each in result["same"].items():
        gaps = f", the others at near ties of at most {max(each['gaps']):.1g}" if each["gaps"] else ""
        caption.append(f"{each['share']:.2%} are the same as {name}{gaps}")
    table = Table("", title=f"{result['options']['size']}, {result['device']}", caption="\n".join(caption))
    table.caption_justify = "left"
    for name in ("answers", "stopped", "seconds", "answers/s", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, each in result["rates"].items():
        per_second = (each[kind] / each["seconds"] for kind in ("answers", "tokens"))
        cells = [f"{each['answers']:,}", f"{each['stopped']:,}", f"{each['seconds']:.1f}"]
        table.add_row(name, *cells, *(f"{rate:,.2f}" for rate in per_second))
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", default="16M", choices=SIZES, help="a model of bench/sizes.json")
    parser.add_argument("--records", type=Path, help="JSON lines of messages or GSM8K's; else made-up ones")
    for name, default, meaning in (
        ("--num-prompts", 1319, "how many prompts are asked, at most"),
        ("--one-by-one", 40, "how many of them are asked one at a time, too"),
        ("--max-new-tokens", 256, "longest answer"),
        ("--num-steps", 60, "steps that the model is trained for; an untrained one never stops"),
    ):
        parser.add_argument(name, default=default, type=int, help=meaning)
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu")
    parser.add_argument("--out", help="a file for the result as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
