"""The verb `eval`: losses, perplexities and answers of a run's policy or of any model."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import write_atomically
from finetooth.base.terminal import plain_text
from finetooth.config.load import load_config
from finetooth.config.schema import SFTConfig
from finetooth.data.ledger import Split
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.evaluation.dev_loss import sample_documents
from finetooth.evaluation.exact_match import Answered, answer_documents, answer_figures
from finetooth.evaluation.speaker import knows_tokens, load_target
from finetooth.evaluation.split_losses import SplitLosses, measure_splits
from finetooth.model.load import refuse_misfits
from finetooth.model.policy import PolicyModel
from finetooth.model.vocabulary import add_rows
from finetooth.training.run_directory import told_time


def evaluate(
    target: str,
    config: SFTConfig | None = None,
    *,
    limit: int | None = None,
    per_record: int | None = None,
    of: Split = "dev",
    out: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures a policy on a run's records; returns the figures and prints them.

    target: a run directory or a model folder; config: default the run's own; limit: answer only so
    many of the dev records. Every answer goes to `samples/eval.jsonl` of a run directory.
    out: a file that gets every answer, too.
    per_record: names so many records of the split `of`, those with the highest loss, as `records`.
    """
    console = console or Console(quiet=True)
    config = config or _own_config(target)
    devices = DeviceManager(config.training.device, config.training.precision)
    prepared = prepare_data(config, console=console, now=told_time(Path(target)))
    if per_record is not None and of == "dev" and prepared.dev is None:
        fact, remedy = "--per-record: data.dev is null, so there are no dev records", "add --of train"
        raise ConfigError(problem("command line", fact, remedy))
    if out is not None and config.evaluation.exact_match is None:
        fact = "--out: evaluation.exact_match is null, so nothing is answered"
        raise ConfigError(problem("command line", fact, "add exact_match=plain"))
    policy = _load(target, prepared, devices)
    losses = _losses(policy, prepared, config, devices, per_record is not None and of == "train", console)
    figures: dict[str, Any] = {"target": target}
    for part in losses.values():
        figures |= part.figures()
    if config.evaluation.exact_match is not None and prepared.dev is not None:
        answered = _answers(policy, prepared, config, devices, limit, console)
        figures |= answer_figures(list(answered.values()))
        dev = losses["dev"].losses
        lines = [{**answer.as_line(), "loss": dev.over([number]).loss} for number, answer in answered.items()]
        _keep(lines, [out, Path(target) / "samples" / "eval.jsonl" if _is_run(target) else None])
    console.print(_table(figures))
    if per_record is not None:
        figures["records"] = losses[of].highest(per_record)
        console.print(_record_table(figures["records"], of))
    return figures


def _own_config(target: str) -> SFTConfig:
    if not _is_run(target):
        raise ConfigError(problem("command line", f"{target} is no run directory", "add --config RUN.yaml"))
    return load_config(Path(target) / "config.yaml")


def _is_run(target: str) -> bool:
    return (Path(target) / "config.yaml").is_file()


def _keep(lines: list[dict[str, Any]], paths: list[Path | None]) -> None:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    for path in paths:
        if path is not None:
            write_atomically(path, content)


def _load(target: str, prepared: PreparedData, devices: DeviceManager) -> PolicyModel:
    policy = load_target(target, devices=devices)
    if not knows_tokens(target, prepared.template):
        add_rows(policy, prepared.template)
    refuse_misfits(policy, prepared.tokenizer, longest_document=prepared.longest_document)
    return policy


def _losses(
    policy: PolicyModel,
    prepared: PreparedData,
    config: SFTConfig,
    devices: DeviceManager,
    whole_train: bool,
    console: Console,
) -> dict[Split, SplitLosses]:
    with _progress("measuring", console) as advance:
        return measure_splits(
            policy, prepared, config, devices=devices, whole_train=whole_train, on_progress=advance
        )


def _answers(
    policy: PolicyModel,
    prepared: PreparedData,
    config: SFTConfig,
    devices: DeviceManager,
    limit: int | None,
    console: Console,
) -> dict[int, Answered]:
    """By the number of its document in dev, each answer."""
    assert prepared.dev is not None
    assert config.evaluation.exact_match is not None
    dev = prepared.dev
    numbers = sample_documents(dev, limit, seed=config.training.seed).tolist()
    asked = [number for number in numbers if dev.document(number).prompt_length]
    with _progress("answering", console) as advance:
        answered = answer_documents(
            policy,
            dev,
            numbers=asked,
            template=prepared.template,
            extractor=config.evaluation.exact_match,
            max_new_tokens=config.evaluation.max_new_tokens,
            devices=devices,
            on_progress=lambda num_answered: advance(num_answered, len(asked)),
        )
    return dict(zip(asked, answered, strict=True))


@contextmanager
def _progress(doing: str, console: Console) -> Iterator[Callable[[int, int], object]]:
    """A bar on a terminal; gives what is told how much was done since the last call, and of how much."""
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, total: progress.update(task, advance=done, total=total)


def _table(figures: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, value in figures.items():
        if isinstance(value, dict):
            for source, part in value.items():
                table.add_row(plain_text(f"{name.removesuffix('_by_source')}, {source}"), f"{part:.4f}")
        else:
            table.add_row(name, plain_text(f"{value:.4f}" if isinstance(value, float) else str(value)))
    return table


def _record_table(records: list[dict[str, Any]], split: Split) -> Table:
    table = Table(title=f"{split} records with the highest loss")
    table.add_column("record", overflow="fold")
    for name in ("loss", "targets"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(plain_text(record["origin"]), f"{record['loss']:.4f}", f"{record['num_targets']:,}")
    return table
