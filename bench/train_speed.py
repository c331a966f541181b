"""Measures training speed: finetooth, packed and padded, beside a plain transformers loop, on the same work.

python bench/train_speed.py --out speed.json
python bench/train_speed.py --documents examples/gsm8k.yaml --model examples/gsm8k/config.json
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config

from arms import PLAIN, Arm, RandomDocuments, build_arms
from finetooth import DeviceManager, load_config
from finetooth.base.errors import FinetoothError
from finetooth.base.files import write_atomically
from finetooth.batching.schedule import Schedule, Step
from finetooth.data.preparation import prepare_data
from finetooth.data.records import DocumentSource

SMALL_MODEL = Path(__file__).with_name("qwen3-small.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes sure that all arms do the same work, times them in turn, prints and writes the result."""
    options = _parse(arguments)
    try:
        devices = DeviceManager(options.device, options.precision)
        documents = _documents(options.documents, options.num_steps * options.documents_per_step)
    except FinetoothError as error:
        raise SystemExit(str(error)) from None
    totals = documents.lengths, documents.loss_weight_totals, documents.num_targets
    size = {"max_steps": options.num_steps, "global_batch_size": options.documents_per_step}
    schedule = Schedule(*totals, seed=0, **size)
    steps = list(schedule.steps())
    config = Qwen3Config(**json.loads(options.model.read_text()))
    arms = build_arms(config, documents, schedule, devices, row_tokens=options.row_tokens)
    result = {
        "device": devices.describe(),
        "versions": {name: version(name) for name in ("finetooth", "torch", "transformers")},
        "options": {name: str(value) for name, value in vars(options).items()},
        "num_documents": sum(len(step.documents) for step in steps),
        "num_tokens": sum(step.num_tokens for step in steps),
        "num_targets": sum(step.num_targets for step in steps),
        "first_step": require_equal(arms, steps[0], precision=devices.precision),
        "tokens_per_second": time_arms(arms, steps, repeats=options.repeats),
    }
    Console().print(_table(result))
    if options.out:
        write_atomically(Path(options.out), (json.dumps(result, indent=1) + "\n").encode())


def require_equal(arms: dict[str, Arm], step: Step, *, precision: str) -> dict[str, Any]:
    """Does one step with every arm, which also warms it up; SystemExit where losses or gradients differ."""
    results = {name: arm(step) for name, arm in arms.items()}
    expected, allowed = results[PLAIN], 1e-3 if precision == "fp32" else 2e-2
    for name, found in results.items():
        is_equal = math.isclose(found.loss, expected.loss, rel_tol=1e-4)
        if not is_equal or not math.isclose(found.grad_norm, expected.grad_norm, rel_tol=allowed):
            raise SystemExit(f"{name}: {found}, but {PLAIN}: {expected}; this is not the same work")
    return {name: asdict(found) for name, found in results.items()}


def time_arms(arms: dict[str, Arm], steps: Sequence[Step], *, repeats: int) -> dict[str, Any]:
    """Does all steps with each arm in turn, `repeats` times; all rates, lowest first."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            started = time.perf_counter()
            for step in steps:
                arm(step)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    amounts = {"useful": sum(s.num_tokens for s in steps), "targets": sum(s.num_targets for s in steps)}
    return {
        name: {kind: sorted(amount / each for each in times) for kind, amount in amounts.items()}
        for name, times in seconds.items()
    }


def _documents(name: str, num_documents: int) -> DocumentSource:
    if name != "synthetic":
        return prepare_data(load_config(name)).train
    lengths = np.random.default_rng(0).lognormal(mean=np.log(128), sigma=0.9, size=num_documents)
    return RandomDocuments(np.clip(lengths, 16, 2048).astype(np.int64))


def _table(result: dict[str, Any]) -> Table:
    title = f"{result['device']}: {result['num_tokens']:,} tokens in {result['num_documents']:,} documents"
    caption = "tokens per second: median (least - most)"
    table = Table("", "useful", "targets", title=title, caption=caption)
    for name, kinds in result["tokens_per_second"].items():
        cells = (f"{statistics.median(r):,.0f} ({r[0]:,.0f} - {r[-1]:,.0f})" for r in kinds.values())
        table.add_row(name, *cells)
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    for name, default, meaning in (
        ("--device", "auto", "cuda, mps or cpu"),
        ("--documents", "synthetic", "a run.yaml, whose documents are used"),
        ("--model", SMALL_MODEL, "a Qwen3 config.json"),
        ("--num-steps", 2, "steps in a repeat"),
        ("--documents-per-step", 16, "documents in a step"),
        ("--row-tokens", 2048, "longest packed row"),
        ("--repeats", 3, "how often every arm is timed"),
        ("--out", None, "a file for the result as JSON"),
    ):
        parser.add_argument(name, default=default, help=meaning, type=type(default) if default else str)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
