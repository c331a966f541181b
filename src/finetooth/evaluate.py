"""The verb `eval`: losses, perplexities and answers of a run's policy or of any model."""

import json
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
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.evaluation.dev_loss import measure_losses, sample_documents
from finetooth.evaluation.exact_match import Answered, answer_documents, share
from finetooth.evaluation.speaker import knows_tokens, load_target
from finetooth.model.load import refuse_misfits
from finetooth.model.policy import PolicyModel
from finetooth.model.vocabulary import add_rows
from finetooth.training.run_directory import told_time


def evaluate(
    target: str, config: SFTConfig | None = None, *, limit: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Measures a policy on a run's records; returns the figures and prints them.

    target: a run directory or a model folder; config: default the run's own; limit: answer only so
    many of the dev records. Every answer goes to `samples/eval.jsonl` of a run directory.
    """
    console = console or Console(quiet=True)
    config = config or _own_config(target)
    devices = DeviceManager(config.training.device, config.training.precision)
    prepared = prepare_data(config, console=console, now=told_time(Path(target)))
    policy = load_target(target, devices=devices)
    if not knows_tokens(target, prepared.template):
        add_rows(policy, prepared.template)
    refuse_misfits(policy, prepared.tokenizer, longest_document=prepared.longest_document)
    train, dev = prepared.train_documents, prepared.dev
    losses = measure_losses(policy, train=train, dev=dev, config=config, devices=devices)
    figures: dict[str, Any] = {"target": target, **losses}
    if config.evaluation.exact_match is not None and prepared.dev is not None:
        answered = _answers(policy, prepared, config, devices, limit, console)
        figures |= {"exact_match": share(answered, "exact_match"), "stop_rate": share(answered, "stopped")}
        figures["num_answers"] = len(answered)
        if (Path(target) / "config.yaml").is_file():
            lines = "".join(json.dumps(answer.as_line()) + "\n" for answer in answered)
            write_atomically(Path(target) / "samples" / "eval.jsonl", lines.encode())
    console.print(_table(figures))
    return figures


def _own_config(target: str) -> SFTConfig:
    path = Path(target) / "config.yaml"
    if not path.is_file():
        raise ConfigError(problem("command line", f"{target} is no run directory", "add --config RUN.yaml"))
    return load_config(path)


def _answers(
    policy: PolicyModel,
    prepared: PreparedData,
    config: SFTConfig,
    devices: DeviceManager,
    limit: int | None,
    console: Console,
) -> list[Answered]:
    assert prepared.dev is not None
    assert config.evaluation.exact_match is not None
    numbers = sample_documents(prepared.dev, limit, seed=config.training.seed).tolist()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("answering", total=len(numbers))
        return answer_documents(
            policy,
            prepared.dev,
            numbers=numbers,
            template=prepared.template,
            extractor=config.evaluation.exact_match,
            max_new_tokens=config.evaluation.max_new_tokens,
            devices=devices,
            on_progress=lambda num_answered: progress.advance(task, num_answered),
        )


def _table(figures: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, plain_text(f"{value:.4f}" if isinstance(value, float) else str(value)))
    return table
