"""Holds what `finetooth plan` predicts against the runs that follow: their memory and their time.

python bench/plan_accuracy.py
python bench/plan_accuracy.py --sizes 16M --records train.jsonl --repeats 3
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetooth.base.files import write_atomically
from processes import ArmError, ending_orderly, run_process
from work import LEARNING_RATE, SEED, SIZES, Record, Work, made_records, make_work, read_records

# Steps of a run by size, so that each takes about half a minute on two cores; others have those of the last.
_NUM_STEPS = {"tiny": 400, "3M": 80, "16M": 24}
_NUM_RECORDS = 1000
_DOCUMENTS_PER_STEP, _MAX_LENGTH, _WORDS = 16, 1024, 150
# How far a prediction may be off.
MEMORY_WITHIN, TIME_WITHIN = 0.10, 0.15


def main(arguments: Sequence[str] | None = None) -> None:
    """Plans and runs each size in turns, prints a table, and exits with 1 where a median is further off."""
    options, console = _parse(arguments), Console(width=80)
    compared: dict[str, list[dict[str, float]]] = {size: [] for size in options.sizes}
    with ending_orderly(), tempfile.TemporaryDirectory(dir=options.work) as name:
        try:
            works = {size: _make_work(size, options, Path(name) / size) for size in options.sizes}
            for repeat in range(1, options.repeats + 1):
                for size, work in works.items():
                    figures = compare(work, Path(name) / "run", limit=options.limit)
                    compared[size].append(figures)
                    times = f"{figures['seconds']:.1f} s, planned {figures['planned_seconds']:.1f} s"
                    console.print(f"{repeat}/{options.repeats} {size}: {times}", highlight=False)
        except ArmError as error:
            raise SystemExit(f"bench: {error}") from None
    console.print(_table(compared))
    if options.out is not None:
        write_atomically(options.out, (json.dumps(compared, indent=1) + "\n").encode())
    if far := [size for size, all_figures in compared.items() if not _is_near(all_figures)]:
        raise SystemExit(f"predicted too far off: {', '.join(far)}")


def compare(work: Work, folder: Path, *, limit: float) -> dict[str, float]:
    """Plans a run, roughly and measured, then does it; each by the command line, in a process of its own.

    Returns seconds and MB of the run, the same as planned, how long planning took, and between how many
    seconds the steps and evaluations should have taken without measuring. limit: seconds for each process.
    """
    folder.mkdir(parents=True)
    run_file = folder / "run.yaml"
    run_file.write_text(json.dumps(_settings(work, folder / "run"), indent=1))
    try:
        rough = _finetooth("plan", run_file, limit=limit)
        planned = _finetooth("plan", run_file, "--measure", limit=limit)
        left = sorted(path.name for path in folder.iterdir() if path.name not in _OURS)
        if left:
            raise SystemExit(f"plan --measure has left behind: {', '.join(left)}")
        command = [sys.executable, "-m", "finetooth", "train", str(run_file)]
        ended = run_process(command, folder, limit=limit)
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    finally:
        shutil.rmtree(folder)
    time = rough["time"] or {"least": 0.0, "most": 0.0}
    return {
        "seconds": ended.ended - ended.started,
        "planned_seconds": planned["time"]["seconds"],
        "memory_mb": ended.peak_memory_mb,
        "planned_memory_mb": planned["memory"]["measured"] / 1e6,
        "estimated_memory_mb": planned["memory"]["total"] / 1e6,
        "planning_seconds": planned["time"]["trial_seconds"],
        "step_seconds": sum(line.get("seconds", 0.0) for line in lines),
        "planned_step_seconds": planned["time"]["parts"]["steps"]["seconds"],
        "rough_least_seconds": time["least"],
        "rough_most_seconds": time["most"],
    }


_OURS = {"run.yaml", "log.txt", "cache", "busy.csv"}


def _finetooth(verb: str, run_file: Path, *options: str, limit: float) -> dict[str, Any]:
    """What a command prints as JSON."""
    command = [sys.executable, "-m", "finetooth", verb, str(run_file), "--json", *options]
    run_process(command, run_file.parent, limit=limit)
    return json.loads((run_file.parent / "log.txt").read_text().splitlines()[-1])


def _settings(work: Work, output: Path) -> dict[str, Any]:
    """A run as people have them: a dev share, three evaluations on the way, each with its checkpoint."""
    every = max(1, work.num_steps // 3)
    return {
        "model": {"path": str(work.base)},
        "data": {
            "train": str(work.records),
            "dev": 0.05,
            "max_length": work.max_length,
            "on_duplicate": "keep",
        },
        "training": {
            "max_steps": work.num_steps,
            "global_batch_size": work.documents_per_step,
            "row_tokens": 2 * work.max_length,
            "learning_rate": LEARNING_RATE,
            "precision": work.precision,
            "seed": SEED,
        },
        "evaluation": {"every": every, "train_documents": 64},
        "checkpoints": {"every": every},
        "output_dir": str(output),
    }


def _make_work(size: str, options: argparse.Namespace, folder: Path) -> Work:
    return make_work(
        folder,
        size,
        _records(options.records),
        num_steps=_NUM_STEPS.get(size, min(_NUM_STEPS.values())),
        documents_per_step=_DOCUMENTS_PER_STEP,
        max_length=_MAX_LENGTH,
        limit=options.limit,
    )


def _records(path: Path | None) -> list[Record]:
    if path is not None:
        return read_records(path)[:_NUM_RECORDS]
    return made_records(_NUM_RECORDS, median=_WORDS, longest=_MAX_LENGTH // 2)


def _is_near(all_figures: Sequence[dict[str, float]]) -> bool:
    return (
        abs(_off(all_figures, "planned_memory_mb", "memory_mb")) <= MEMORY_WITHIN
        and abs(_off(all_figures, "planned_seconds", "seconds")) <= TIME_WITHIN
    )


def _off(all_figures: Sequence[dict[str, float]], planned: str, real: str) -> float:
    """The median of how much more was planned than was taken, as a share of that."""
    return statistics.median(figures[planned] / figures[real] - 1 for figures in all_figures)


def _table(compared: dict[str, list[dict[str, float]]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("time", "planned", "off", "memory", "planned", "off", "planning", "roughly"):
        table.add_column(column, justify="right", no_wrap=True)
    for size, all_figures in compared.items():
        medians = {name: statistics.median(each[name] for each in all_figures) for name in all_figures[0]}
        table.add_row(
            size,
            f"{medians['seconds']:.1f} s",
            f"{medians['planned_seconds']:.1f} s",
            f"{_off(all_figures, 'planned_seconds', 'seconds'):+.1%}",
            f"{medians['memory_mb']:,.0f} MB",
            f"{medians['planned_memory_mb']:,.0f} MB",
            f"{_off(all_figures, 'planned_memory_mb', 'memory_mb'):+.1%}",
            f"{medians['planning_seconds']:.0f} s",
            f"{medians['rough_least_seconds']:.0f} - {medians['rough_most_seconds']:.0f} s",
        )
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(_NUM_STEPS), help="models")
    parser.add_argument("--records", type=Path, help="JSON lines of messages, or GSM8K's; default: made up")
    parser.add_argument("--repeats", type=int, default=1, help="plans and runs of every size")
    parser.add_argument("--limit", type=int, default=600, help="seconds that one process may take")
    parser.add_argument("--work", type=Path, help="where models and runs are kept meanwhile")
    parser.add_argument("--out", type=Path, help="file for all figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
