"""The verb `train`: records and a base model in, a policy in `final/` out."""

import contextlib
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from rich.console import Console

from finetooth.base.devices import DeviceManager, Precision
from finetooth.base.distributed import Notices, Ranks, joined, ranks_of_environment
from finetooth.base.errors import FinetoothError, Stopped, problem
from finetooth.base.stopping import StopRequest
from finetooth.base.terminal import print_line
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.records import DocumentSource
from finetooth.data.subset import Subset
from finetooth.data.templates.template import Template
from finetooth.evaluation.targets import template_notes, told_time
from finetooth.model.policy import PolicyModel
from finetooth.model.start import resume_policy, start_policy
from finetooth.reporting.data_card import write_data_card
from finetooth.reporting.model_card import model_card
from finetooth.reporting.report_page import write_report
from finetooth.reporting.run_facts import read_facts
from finetooth.reporting.run_reading import read_run
from finetooth.training.checkpoint import Checkpoint, CheckpointManager
from finetooth.training.final import save_final
from finetooth.training.legacy_files import has_twin
from finetooth.training.memory import telling_what_loads
from finetooth.training.resuming import require_same_adapter
from finetooth.training.run_directory import (
    Resume,
    claimed_run_directory,
    describe_run,
    finished_summary,
    told_cpu_precision,
    write_json,
)
from finetooth.training.sharded_start import start_sharded
from finetooth.training.trainer import SFTTrainer, TrainResult

OVERFIT_STEPS = 100
# The summary names so many changes, skipped steps and spikes; metrics.jsonl has all.
MOST_NOTES = 50
# Below this share of its first value, the loss of a few documents counts as collapsed.
COLLAPSED = 0.1


def train(
    config: SFTConfig,
    *,
    resume: Resume = "never",
    accept_changes: bool = False,
    overfit: int | None = None,
    auto_fit: bool = False,
    console: Console | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Trains a policy as the config says; returns what `summary.json` holds.

    resume:  never, must (a run with a checkpoint has to be there) or auto (continue it or start).
    accept_changes: go on although settings or records are others; what changed is recorded. A run may be
             made longer this way, a finished one too.
    overfit: a sanity run on so many documents: 100 steps (or max_steps) of all of them at the full
             learning rate, without dev records. The loss must collapse; whether it did is said.
    auto_fit: rows become shorter where the device's memory does not hold them.
    stop:    listens to signals already; default: they are listened to here.
    Raises Stopped after a signal, once everything is saved.
    """
    ranks = ranks_of_environment()
    console = console if console and ranks.is_first else Console(quiet=True)
    if overfit is not None:
        config = _overfitting(config, overfit)
    training, output = config.training, Path(config.output_dir)
    devices = DeviceManager(training.device, training.precision, local_rank=ranks.local_rank)
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        notices = stack.enter_context(joined(ranks, devices.device, timeout_seconds=config.parallel.timeout))
        with ranks.agreeing("opening output_dir"):
            if ranks.is_first:
                stack.enter_context(claimed_run_directory(output, resume=resume))
        devices = _in_one_precision(devices, config, ranks, resume)
        run = _Run(config, ranks, notices, stop, auto_fit, console)
        summary = _train(run, resume, accept_changes, overfit, devices)
    if overfit is not None:
        _judge_overfit(console, summary)
    return summary


def _in_one_precision(
    devices: DeviceManager, config: SFTConfig, ranks: Ranks, resume: Resume
) -> DeviceManager:
    """The same, in what the first rank takes `auto` for: on a CPU it is measured, once for the whole run."""
    training = config.training
    if training.precision != "auto" or devices.device.type != "cpu":
        return devices
    told = told_cpu_precision(Path(config.output_dir)) if resume != "never" else None
    with ranks.doing("agreeing on the precision"):
        precision = cast(Precision, ranks.texts(told or devices.precision)[0])
    return DeviceManager(training.device, precision)


@dataclass(frozen=True, slots=True)
class _Run:
    """What every part of the verb needs."""

    config: SFTConfig
    ranks: Ranks
    notices: Notices
    stop: StopRequest
    auto_fit: bool
    console: Console


def _train(
    run: _Run, resume: Resume, accept_changes: bool, overfit: int | None, devices: DeviceManager
) -> dict[str, Any]:
    started = time.perf_counter()
    config, ranks, console = run.config, run.ranks, run.console
    output = Path(config.output_dir)
    with ranks.agreeing("preparing data"):
        now = told_time(output) if resume != "never" else None
        prepared = prepare_data(config, console=console, now=now)
    train_documents, dev_documents = _documents(prepared, overfit)
    with ranks.agreeing("loading the model"):
        checkpoint = _checkpoint(config, resume, ranks, console)
        with telling_what_loads(devices, is_sharded=config.parallel.shard is not None):
            policy, notes = _policy(config, prepared.template, checkpoint, ranks, devices)
    with ranks.agreeing("setting up"):
        trainer = SFTTrainer(
            config,
            policy=policy,
            template=prepared.template,
            train=train_documents,
            dev=dev_documents,
            devices=devices,
            ranks=ranks,
            console=console,
            auto_fit=run.auto_fit,
        )
        if checkpoint is not None:
            trainer.take_up(checkpoint, accept_changes=accept_changes)
    finished = finished_summary(output) if trainer.is_finished and ranks.is_first else None
    if ranks.highest(finished is not None):
        _announce(console, trainer, checkpoint)
        return finished or {}
    ledger = prepared.folder / "ledger.jsonl"
    if ranks.is_first:
        schedule = trainer.schedule.describe()
        describe_run(output, config=config, devices=devices, schedule=schedule, ledger=ledger, template=notes)
        layout, world_size = trainer.updates.layout, ranks.world_size
        write_data_card(
            output, prepared, config, documents=train_documents, layout=layout, world_size=world_size
        )
    _announce(console, trainer, checkpoint)
    _announce_tokens(console, notes)
    summary: dict[str, Any] = {"state": "failed", "output_dir": str(output)}
    run.stop.hold(deadline=config.checkpoints.stop_deadline, give_up=lambda: _give_up(run, trainer))
    try:
        result = trainer.train(run.stop)
        figures = _figures(trainer, result, state="finished" if result.stopped is None else "stopped")
        if result.stopped is None:
            _write_policy(run, policy, prepared.template, figures)
        summary |= figures
    except FinetoothError as error:
        summary["problems"] = error.problems
        raise
    finally:
        summary["seconds"] = round(time.perf_counter() - started, 2)
        if ranks.is_first:
            write_json(output / "summary.json", summary)
            run.stop.settle()
            _report(output, console)
    if result.stopped is not None:
        _tell_of_stop(output, result, trainer.schedule.num_steps)
    return summary


def _write_policy(run: _Run, policy: PolicyModel, template: Template, figures: dict[str, Any]) -> None:
    config, ranks, output = run.config, run.ranks, Path(run.config.output_dir)
    with ranks.doing("writing final/"):
        facts = read_facts(output, config, summary=figures) if ranks.is_first else None
        whole = "folder" if has_twin(policy.model) else "pt"
        form = "adapter" if config.adapter.type else whole
        card = model_card(facts, template, form=form) if facts else ""
        save_final(output / "final", policy=policy, template=template, card=card, ranks=ranks)
    print_line(run.console, f"policy: {output / 'final'}")


def _report(output: Path, console: Console) -> None:
    """Writes the report; a run that went well, or failed otherwise, does not fail where it cannot."""
    try:
        print_line(console, f"report: {write_report(read_run(str(output)))}")
    except FinetoothError as error:
        print_line(console, f"no report: {error.problems[0]}")


def _tell_of_stop(output: Path, result: TrainResult, num_steps: int) -> NoReturn:
    assert result.stopped is not None, "the run was stopped"
    fact, remedy = f"stopped after step {result.last_step} of {num_steps}, saved", "continue with --resume"
    if result.last_step == 0:
        fact, remedy = "stopped before the first step", "continue with --resume auto"
    raise Stopped(problem(output, fact, remedy), exit_code=result.stopped)


def _give_up(run: _Run, trainer: SFTTrainer) -> None:
    """Ends a process that could not save in time; in another thread, as the main one is busy."""
    output, done = Path(run.config.output_dir), trainer.state.next_step - 1
    folders = (output / "checkpoints").glob("step-*")
    saved = max((int(folder.name.removeprefix("step-")) for folder in folders), default=0)
    lost = f"{done - saved} steps after it are lost" if saved else f"{done} steps are lost"
    last = f"the last checkpoint is step-{saved:06d}" if saved else "there is no checkpoint"
    fact = f"stopped, and not saved within {run.config.checkpoints.stop_deadline:g} s; {last}, {lost}"
    remedy = "continue with --resume" if saved else "continue with --resume auto"
    error = Stopped(f"{output}: {fact}; {remedy}", exit_code=run.stop.exit_code)
    run.notices.leave(error)
    if run.ranks.is_first:
        summary = {"state": "stopped", "output_dir": str(output), "num_steps": saved}
        write_json(output / "summary.json", summary | {"num_lost_steps": done - saved})
    print(error, file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def _overfitting(config: SFTConfig, num_documents: int) -> SFTConfig:
    """The config for a sanity run: every step sees all the documents, at the full learning rate."""
    training = replace(
        config.training,
        max_steps=config.training.max_steps or OVERFIT_STEPS,
        global_batch_size=num_documents,
        global_batch_tokens=None,
        warmup_steps=0,
        lr_scheduler_type="constant",
    )
    evaluation = replace(config.evaluation, every=0, exact_match=None, train_documents=num_documents)
    return replace(config, training=training, evaluation=evaluation)


def _judge_overfit(console: Console, summary: dict[str, Any]) -> None:
    before, after = summary["first_train_loss"], summary["train_loss"]
    verdict = f"the loss of these documents fell from {before:.4f} to {after:.4f}"
    if after > before * COLLAPSED:
        verdict += ", which is no collapse: raise learning_rate or max_steps, or look at the targets"
    print_line(console, verdict)


def _documents(prepared: PreparedData, overfit: int | None) -> tuple[DocumentSource, DocumentSource | None]:
    if overfit is None:
        return prepared.train_documents, prepared.dev
    return Subset(prepared.train, range(min(overfit, prepared.train.num_documents))), None


def _checkpoint(config: SFTConfig, resume: Resume, ranks: Ranks, console: Console) -> Checkpoint | None:
    if resume == "never":
        return None

    def notify(line: str) -> None:
        print_line(console, line)

    folder = Path(config.output_dir) / "checkpoints"
    checkpoint = CheckpointManager(folder, ranks=ranks).latest(notify=notify, must=resume == "must")
    if checkpoint is None and resume == "must":
        raise FinetoothError(problem(folder, "no checkpoint", "write --resume auto to start the run anew"))
    return checkpoint


def _policy(
    config: SFTConfig, template: Template, checkpoint: Checkpoint | None, ranks: Ranks, devices: DeviceManager
) -> tuple[PolicyModel, dict[str, Any]]:
    """The policy, and what environment.json says of the template: when resumed, what was noted at first."""
    if checkpoint is not None:
        require_same_adapter(checkpoint, config.adapter)
    saved = None if checkpoint is None else checkpoint.folder
    sharded = start_sharded(config, template, checkpoint=saved, ranks=ranks, devices=devices)
    if saved is not None:
        policy = sharded[0] if sharded else resume_policy(config, template, saved, devices=devices)
        return policy, template_notes(Path(config.output_dir))
    policy, tokens = sharded or start_policy(config, template, devices=devices)
    return policy, {
        "name": template.name,
        "now": template.now.isoformat() if template.date_formats else None,
        "added_tokens": list(tokens.added),
        "untrained_tokens": list(tokens.untrained),
    }


def _announce_tokens(console: Console, notes: dict[str, Any]) -> None:
    lines: list[str] = []
    if added := notes.get("added_tokens"):
        lines.append(f"{' '.join(added)}: added to the tokenizer; their embeddings begin as the mean of all")
    if untrained := notes.get("untrained_tokens"):
        fact = "the base model seems never to have trained their embeddings"
        remedy = "train on enough answers that the policy learns to stop, or use template headers"
        lines.append(problem(" ".join(untrained), fact, remedy))
    for line in lines:
        print_line(console, line)


def _announce(console: Console, trainer: SFTTrainer, checkpoint: Checkpoint | None) -> None:
    schedule = trainer.schedule
    lines = [f"{_parameters_in_words(trainer.policy)} on {trainer.devices.describe()}"]
    lines += [f"{schedule.num_steps} steps over {schedule.num_documents:,} documents"]
    if checkpoint is not None:
        done = checkpoint.state.next_step - 1
        lines += [
            f"continues after step {done}" if done < schedule.num_steps else "this run was finished already"
        ]
    print_line(console, "; ".join(lines))
    if trainer.policy.why_not_packed is not None and trainer.config.training.packing is not False:
        kind = type(trainer.policy.model).__name__
        remedy = "each document has a row of its own, which costs speed alone"
        print_line(console, problem(kind, trainer.policy.why_not_packed, remedy))


def _parameters_in_words(policy: PolicyModel) -> str:
    num_all, num_trained = policy.num_parameters(), policy.num_parameters(trained=True)
    if policy.adapter is None:
        return f"{num_all / 1e6:,.1f}M parameters"
    return f"{num_trained:,} trained parameters ({num_trained / num_all:.2%} of {num_all / 1e6:,.1f}M)"


def _figures(
    trainer: SFTTrainer, result: TrainResult, *, state: Literal["finished", "stopped"]
) -> dict[str, Any]:
    notes: dict[str, list[dict[str, Any]]] = {"changes": [], "skipped": [], "spike": []}
    last: dict[str, Any] = {}
    first = None
    for line in result.metrics.each_line():
        last |= line
        first = line.get("train_loss") if first is None else first
        for name, noted in notes.items():
            if name in line and len(noted) < MOST_NOTES:
                noted.append({"step": line["step"], name: line[name]})
    num_tokens, num_targets = trainer.schedule.totals(result.last_step)
    wanted = (
        "loss",
        "train_loss",
        "train_perplexity",
        "dev_loss",
        "dev_perplexity",
        "exact_match",
        "stop_rate",
    )
    return {
        "state": state,
        "num_steps": result.last_step,
        "num_documents": trainer.schedule.num_documents,
        "num_tokens": num_tokens,
        "num_targets": num_targets,
        **{name: last[name] for name in wanted if name in last},
        "first_train_loss": first,
        "best_step": trainer.state.best_step,
        "peak_memory_mb": round(trainer.devices.peak_memory_mb(), 1),
        **{name: noted for name, noted in notes.items() if noted},
    }
