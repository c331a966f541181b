"""Measures whole training runs, from the command to the saved model: finetooth beside TRL, on the same work.

python bench/whole_runs.py
python bench/whole_runs.py --sizes 16M 55M --records train.jsonl --num-steps 50 --repeats 5
python bench/whole_runs.py --scaling
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from comparison import Comparison
from curves import curves_svg
from finetooth.base.files import write_atomically
from finetooth_arm import run_finetooth
from printing import print_comparison, print_machine, print_scaling
from processes import ArmError, ending_orderly, run_process
from runs import COMPILED, FINETOOTH, Arm
from scaling import scale
from trl_arms import trl_arms
from work import SEED, SIZES, Record, made_records, make_work, read_records

# What is measured where nothing else is asked for: minutes on two cores, and real sizes on a GPU.
_ON_CPU = {
    "sizes": ["16M"],
    "arms": ["TRL"],
    "num_steps": 4,
    "documents_per_step": 8,
    "max_length": 1024,
    "words": 100,
}
_ON_GPU = {
    "sizes": ["0.6B", "1.7B", "4B", "8B", "8B LoRA"],
    "arms": ["TRL", COMPILED],
    "num_steps": 30,
    "documents_per_step": 64,
    "max_length": 4096,
    "words": 700,
}
_FEWEST_TOKENS = 4096  # in a step whose costs are to scale
_WARM_UP = {"cpu": 1, "mps": 1, "cuda": 5}


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what is asked for, prints tables, and writes results.json and loss-SIZE.svg."""
    options, console = _parse(arguments), Console(width=80)
    with ending_orderly(), tempfile.TemporaryDirectory(dir=options.work) as name:
        try:
            result = _measure(options, Path(name), console)
        except ArmError as error:
            raise SystemExit(f"bench: {error}") from None
    options.out.mkdir(parents=True, exist_ok=True)
    for size, compared in result.get("sizes", {}).items():
        picture = options.out / f"loss-{size.replace(' ', '-')}.svg"
        picture.write_text(curves_svg(f"training loss of each step, {size}", compared["losses"]))
    write_atomically(options.out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
    console.print(f"all figures and loss curves: {options.out}")


def _measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    peaks = _measure_peaks(folder / "peaks", limit=options.limit)
    print_machine(console, peaks)
    on_gpu = peaks["device_type"] == "cuda"
    for name, value in (_ON_GPU if on_gpu else _ON_CPU).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    warm_up = _WARM_UP[peaks["device_type"]]
    if options.num_steps <= warm_up:
        fact = f"--num-steps: {options.num_steps}, of which the first {warm_up} only warm up"
        raise SystemExit(f"{fact}; write {warm_up + 1} or more")
    result: dict[str, Any] = {
        "versions": {name: version(name) for name in ("finetooth", "torch", "transformers", "trl")},
        "options": {name: str(value) for name, value in vars(options).items()},
        "machine": peaks,
    }
    if options.scaling:
        result["scaling"] = _scale(options, folder, peaks, console)
        print_scaling(console, result["scaling"])
        return result
    result["sizes"] = {}
    for size in options.sizes:
        result["sizes"][size] = _compare(size, options, folder, peaks, console)
        print_comparison(console, size, result["sizes"][size])
    return result


def _measure_peaks(folder: Path, *, limit: float) -> dict[str, Any]:
    script = Path(__file__).with_name("peaks.py")
    run_process([sys.executable, str(script)], folder, limit=limit)
    return json.loads((folder / "log.txt").read_text().splitlines()[-1])


def _compare(
    size: str, options: argparse.Namespace, folder: Path, peaks: dict[str, Any], console: Console
) -> dict[str, Any]:
    variants = [
        Arm(COMPILED, partial(run_finetooth, compile=True)),
        *trl_arms(bf16_pays=peaks["bf16_pays"], on_gpu=peaks["device_type"] == "cuda"),
    ]
    wanted = [arm for arm in variants if any(text in arm.name for text in options.arms)]
    work = make_work(
        folder / "work",
        size,
        _records(options),
        num_steps=options.num_steps,
        documents_per_step=options.documents_per_step,
        max_length=options.max_length,
        limit=options.limit,
        seed=options.seed,
    )
    comparison = Comparison(
        arms=[Arm(FINETOOTH, run_finetooth), *wanted],
        work=work,
        folder=folder / "arm",
        peak_flops=peaks["peak_flops"],
        warm_up=_WARM_UP[peaks["device_type"]],
        limit=options.limit,
        tell=lambda line: console.print(line, highlight=False),
    )
    comparison.take_turns(repeats=options.repeats)
    result = comparison.result()
    shutil.rmtree(folder / "work")
    return result


def _records(options: argparse.Namespace) -> list[Record]:
    needed = options.num_steps * options.documents_per_step
    if options.records is None:
        return made_records(max(needed, 1000), median=options.words, longest=options.max_length // 2)
    records = read_records(options.records)
    if len(records) < needed:
        raise SystemExit(f"{options.records}: {len(records)} records; {needed} are needed for so many steps")
    return records


def _scale(
    options: argparse.Namespace, folder: Path, peaks: dict[str, Any], console: Console
) -> list[dict[str, Any]]:
    return scale(
        options.sizes,
        folder,
        peaks["peak_flops"],
        num_steps=options.num_steps,
        tokens_per_step=max(_FEWEST_TOKENS, options.words * options.documents_per_step),
        repeats=options.repeats,
        warm_up=_WARM_UP[peaks["device_type"]],
        limit=options.limit,
        tell=lambda line: console.print(line, highlight=False),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, help="models; default: 16M, or 0.6B and more on a GPU"
    )
    parser.add_argument("--records", type=Path, help="JSON lines of messages, or GSM8K's; default: made up")
    parser.add_argument("--arms", nargs="*", help="arms beside finetooth whose names hold one of these")
    parser.add_argument("--scaling", action="store_true", help="vary one thing after the other instead")
    parser.add_argument("--work", type=Path, help="where models are kept meanwhile, e.g. /dev/shm")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the results")
    for name, default, meaning in (
        ("--num-steps", None, "steps of a run"),
        ("--documents-per-step", None, "documents in a step"),
        ("--max-length", None, "longest document, in tokens, and TRL's packed rows"),
        ("--words", None, "median length of records that are made up"),
        ("--seed", SEED, "of the model's parameters and of the order of the documents"),
        ("--repeats", 3, "runs of every arm"),
        ("--limit", 1800, "seconds that one run may take"),
    ):
        parser.add_argument(name, type=int, default=default, help=meaning)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
