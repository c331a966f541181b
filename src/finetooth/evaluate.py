"""The verb `eval`: losses, perplexities and answers of runs, checkpoints and any models."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import write_atomically
from finetooth.base.terminal import print_line, progress
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Split
from finetooth.data.preparation import PreparedData
from finetooth.evaluation.exact_match import Answered, answer_figures
from finetooth.evaluation.judging import answer_dev, free_memory, make_ready, prepare_for
from finetooth.evaluation.speaker import load_target
from finetooth.evaluation.split_losses import SplitLosses, measure_splits
from finetooth.evaluation.targets import PLACE, Target, find_targets, settings_file
from finetooth.model.policy import PolicyModel
from finetooth.reporting.judged_tables import figures_table, records_table, side_by_side


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What every target is measured on, and how."""

    prepared: PreparedData
    config: SFTConfig
    devices: DeviceManager
    limit: int | None
    per_record: int | None
    of: Split
    console: Console


def evaluate(
    targets: str | Sequence[str],
    config: SFTConfig | None = None,
    *,
    limit: int | None = None,
    per_record: int | None = None,
    of: Split = "dev",
    out: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures policies on a run's records, one after the other; returns the figures and prints them.

    targets: run directories, checkpoints of runs, model folders, hub names or `.pt` files; of several,
    `targets` holds the figures of each. config: default that of the first run among them.
    limit: answer only so many of the dev records. Answers go to `samples/eval.jsonl` of a run directory.
    out: a file that gets every answer, too; of several targets, each with its `target`.
    per_record: names so many records of the split `of`, those with the highest loss, as `records`.
    Raises ConfigError, before anything is measured, with every target that cannot be.
    """
    console = console or Console(quiet=True)
    names = [targets] if isinstance(targets, str) else list(targets)
    judged = find_targets(names)
    config = config or load_config(settings_file(names))
    _require_answerable(config, per_record=per_record, of=of, out=out)
    devices = DeviceManager(config.training.device, config.training.precision)
    prepared = prepare_for(judged, config, console=console)
    how = _Judgement(prepared, config, devices, limit, per_record, of, console)
    measured: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    try:
        for target in judged:
            figures, answers = _judge(target, how)
            measured.append(figures)
            lines += answers if len(judged) == 1 else [{"target": target.name, **line} for line in answers]
    finally:
        _show(measured, how)
    if out is not None:
        _keep(lines, out)
    return measured[0] if len(judged) == 1 else {"targets": measured}


def _require_answerable(config: SFTConfig, *, per_record: int | None, of: Split, out: Path | None) -> None:
    problems: list[str] = []
    if per_record is not None and of == "dev" and config.data.dev is None:
        fact, remedy = "--per-record: data.dev is null, so there are no dev records", "add --of train"
        problems.append(problem(PLACE, fact, remedy))
    if out is not None and config.evaluation.exact_match is None:
        fact = "--out: evaluation.exact_match is null, so nothing is answered"
        problems.append(problem(PLACE, fact, "add exact_match=plain"))
    if out is not None and out.is_dir():
        problems.append(problem("--out", f"{out} is a folder", "name a file"))
    if problems:
        raise ConfigError(problems)


def _judge(target: Target, how: _Judgement) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures of a target, and a line for each of its answers."""
    free_memory(how.devices)
    policy = load_target(target, devices=how.devices)
    make_ready(policy, target, how.prepared)
    losses = _losses(policy, how)
    figures: dict[str, Any] = {"target": target.name}
    for part in losses.values():
        figures |= part.figures()
    lines: list[dict[str, Any]] = []
    if how.config.evaluation.exact_match is not None and how.prepared.dev is not None:
        answered = _answers(policy, how)
        figures |= answer_figures(list(answered.values()))
        dev = losses["dev"].losses
        lines = [{**answer.as_line(), "loss": dev.over([number]).loss} for number, answer in answered.items()]
        if target.is_run and target.run is not None:
            _keep(lines, target.run / "samples" / "eval.jsonl")
    if how.per_record is not None:
        figures["records"] = losses[how.of].highest(how.per_record)
    return figures, lines


def _keep(lines: list[dict[str, Any]], path: Path) -> None:
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _losses(policy: PolicyModel, how: _Judgement) -> dict[Split, SplitLosses]:
    with progress("measuring", how.console) as advance:
        return measure_splits(
            policy,
            how.prepared,
            how.config,
            devices=how.devices,
            whole_train=how.per_record is not None and how.of == "train",
            on_progress=advance,
        )


def _answers(policy: PolicyModel, how: _Judgement) -> dict[int, Answered]:
    with progress("answering", how.console) as advance:
        return answer_dev(
            policy, how.prepared, how.config, devices=how.devices, limit=how.limit, on_progress=advance
        )


def _show(measured: Sequence[dict[str, Any]], how: _Judgement) -> None:
    """Prints what was measured, also where a later target could not be; then the records of each."""
    if len(measured) == 1:
        how.console.print(figures_table(measured[0]))
    else:
        for table in side_by_side(measured, width=how.console.width):
            how.console.print(table)
    for figures in measured:
        if "records" in figures:
            if len(measured) > 1:
                print_line(how.console, f"{figures['target']}:")
            title = f"{how.of} records with the highest loss"
            how.console.print(records_table(figures["records"], title))
