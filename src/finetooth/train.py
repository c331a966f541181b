"""The verb `train`: records and a base model in, a policy in `final/` out."""

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from rich.console import Console

from finetooth.base.devices import DeviceManager, Precision
from finetooth.base.distributed import Notices, Ranks, joined, ranks_of_environment
from finetooth.base.errors import ConfigError, FinetoothError, Stopped, problem
from finetooth.base.files import check_folder
from finetooth.base.stopping import StopRequest
from finetooth.base.terminal import print_line
from finetooth.config.figures import holds_best
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
from finetooth.training.mirrors import require_mirrors
from finetooth.training.overfitting import overfitting, verdict_on
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
from finetooth.training.summary import summary_of
from finetooth.training.trainer import SFTTrainer, TrainResult


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
        config = overfitting(config, overfit)
    training, output = config.training, Path(config.output_dir)
    devices = DeviceManager(training.device, training.precision, local_rank=ranks.local_rank)
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest().listening())
        notices = stack.enter_context(joined(ranks, devices.device, timeout_seconds=config.parallel.timeout))
        with ranks.agreeing("opening output_dir"):
            if ranks.is_first:
                require_mirrors(config.logging)
                stack.enter_context(claimed_run_directory(output, resume=resume))
        devices = _in_one_precision(devices, config, ranks, resume)
        run = _Run(config, ranks, notices, stop, auto_fit, console)
        summary = _train(run, resume, accept_changes, overfit, devices)
    if overfit is not None:
        print_line(console, verdict_on(summary))
    return summary


def _in_one_precision(
    devices: DeviceManager, config: SFTConfig, ranks: Ranks, resume: Resume
) -> DeviceManager:
    """The same, in what the first rank takes `auto` for: on a CPU it is measured, once for the whole run."""
    training = config.training
    if training.precision != "auto" or devices.device.type != "cpu":
        return devices
    with ranks.agreeing("reading environment.json"):
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
    with ranks.agreeing("loading the model"):
        checkpoint = _checkpoint(config, resume, ranks, console)
        with telling_what_loads(devices, is_sharded=config.parallel.shard is not None):
            policy, notes = _policy(config, prepared.template, checkpoint, ranks, devices)
    with ranks.agreeing("setting up"):
        trainer = _trainer(run, prepared, policy, overfit, devices)
        if checkpoint is not None:
            trainer.take_up(checkpoint, accept_changes=accept_changes)
    with ranks.agreeing("reading summary.json"):
        finished = _finished_summary(trainer) if ranks.is_first else None
    if ranks.highest(finished is not None):
        _announce(console, trainer, checkpoint)
        return finished or {}
    if ranks.is_first:
        _describe(trainer, prepared, notes)
    _announce(console, trainer, checkpoint)
    _announce_tokens(console, notes)
    return _train_and_tell(run, trainer, prepared.template, started)


def _trainer(
    run: _Run, prepared: PreparedData, policy: PolicyModel, overfit: int | None, devices: DeviceManager
) -> SFTTrainer:
    train_documents, dev_documents = _documents(prepared, overfit)
    return SFTTrainer(
        run.config,
        policy=policy,
        template=prepared.template,
        train=train_documents,
        dev=dev_documents,
        devices=devices,
        ranks=run.ranks,
        console=run.console,
        auto_fit=run.auto_fit,
    )


def _finished_summary(trainer: SFTTrainer) -> dict[str, Any] | None:
    """That of a run which has ended, and whose final/ holds what the settings ask for; else None."""
    summary = finished_summary(Path(trainer.config.output_dir)) if trainer.is_finished else None
    if summary is None:
        return None
    held = summary.get("final_step", summary.get("num_steps"))
    return summary if trainer.final_step in (held, None) else None


def _describe(trainer: SFTTrainer, prepared: PreparedData, notes: dict[str, Any]) -> None:
    """Writes what is known before the first step; notes: what environment.json says of the template."""
    config, output = trainer.config, Path(trainer.config.output_dir)
    describe_run(
        output,
        config=config,
        devices=trainer.devices,
        schedule=trainer.schedule.describe(),
        ledger=prepared.folder / "ledger.jsonl",
        template=notes,
    )
    write_data_card(
        output,
        prepared,
        config,
        documents=trainer.train_documents,
        layout=trainer.updates.layout,
        world_size=trainer.ranks.world_size,
    )


def _train_and_tell(run: _Run, trainer: SFTTrainer, template: Template, started: float) -> dict[str, Any]:
    """Trains, writes final/, and in any case summary.json and the report; returns the summary."""
    config, ranks, output = run.config, run.ranks, Path(run.config.output_dir)
    summary: dict[str, Any] = {"state": "failed", "output_dir": str(output)}
    run.stop.hold(deadline=config.checkpoints.stop_deadline, give_up=lambda: _give_up(run, trainer))
    if ranks.is_first:
        # How it ended before is not how it ends; killed from here on, it has no end that could be told.
        (output / "summary.json").unlink(missing_ok=True)
    try:
        result = trainer.train(run.stop)
        final_step = _final_step(trainer) if result.stopped is None else None
        figures = summary_of(trainer, result, final_step=final_step)
        if final_step is not None:
            _write_policy(run, trainer, template, figures, final_step)
        summary |= figures
    except FinetoothError as error:
        summary["problems"] = error.problems
        raise
    finally:
        summary["seconds"] = round(time.perf_counter() - started, 2)
        if ranks.is_first:
            write_json(output / "summary.json", summary)
            run.stop.settle()
            _report(output, run.console)
    if result.stopped is not None:
        _tell_of_stop(output, result, trainer.schedule.num_steps)
    return summary


def _final_step(trainer: SFTTrainer) -> int:
    """The step whose policy goes to final/. Raises ConfigError where its checkpoint is gone."""
    if trainer.final_step is None:
        fact = "the checkpoint of the best evaluation is gone"
        raise ConfigError(problem("checkpoints.final", fact, "write last"))
    return trainer.final_step


def _write_policy(
    run: _Run, trainer: SFTTrainer, template: Template, figures: dict[str, Any], step: int
) -> None:
    config, ranks, output = run.config, run.ranks, Path(run.config.output_dir)
    with ranks.doing("writing final/"):
        facts = read_facts(output, config, summary=figures) if ranks.is_first else None
        whole = "folder" if has_twin(trainer.policy.model) else "pt"
        form = "adapter" if config.adapter.type else whole
        card = model_card(facts, template, form=form) if facts else ""
        policy: PolicyModel | Path = trainer.policy
        if step != trainer.state.next_step - 1:
            policy = _policy_of_step(run, trainer, template, step)
        save_final(output / "final", policy=policy, template=template, card=card, ranks=ranks, step=step)
    if trainer.ended_early is not None:
        print_line(run.console, f"ended early after {trainer.ended_early}")
    is_best = holds_best(final=config.checkpoints.final, patience=config.evaluation.patience)
    which = f"the best by {config.evaluation.best_by}" if is_best else "the last"
    print_line(run.console, f"policy: {output / 'final'} (step {step}, {which})")


def _policy_of_step(run: _Run, trainer: SFTTrainer, template: Template, step: int) -> PolicyModel | Path:
    """The checkpoint's folder; where its files cannot be final/'s as they are, the policy read from it."""
    folder = trainer.checkpoints.path_of(step)
    with run.ranks.agreeing(f"checking {folder}"):
        damages = check_folder(folder, share=(run.ranks.rank, run.ranks.world_size))
        if damages:
            remedy = "restore it, or write checkpoints.final: last and go on with --resume"
            raise FinetoothError(problem(folder, f"damaged: {damage}", remedy) for damage in damages)
    if has_twin(trainer.policy.model):
        return folder
    return resume_policy(run.config, template, folder, devices=trainer.devices)


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
        return policy, _notes(template) | template_notes(Path(config.output_dir))
    policy, tokens = sharded or start_policy(config, template, devices=devices)
    return policy, _notes(template) | {"untrained_tokens": list(tokens.untrained)}


def _notes(template: Template) -> dict[str, Any]:
    """What environment.json says of a template, but for what is known of its tokens at the start alone."""
    return {
        "name": template.name,
        "now": template.now.isoformat() if template.date_formats else None,
        "added_tokens": list(template.added_tokens),
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
        lines += ["this run was finished already" if trainer.is_finished else f"continues after step {done}"]
    print_line(console, "; ".join(lines))
    if checkpoint is not None and trainer.ended_early is not None:
        remedy = "to go on, raise evaluation.patience and add --accept-changes"
        print_line(console, f"it ended early after {trainer.ended_early}; {remedy}")
    if trainer.policy.why_not_packed is not None and trainer.config.training.packing is not False:
        kind = type(trainer.policy.model).__name__
        remedy = "each document has a row of its own, which costs speed alone"
        print_line(console, problem(kind, trainer.policy.why_not_packed, remedy))


def _parameters_in_words(policy: PolicyModel) -> str:
    num_all, num_trained = policy.num_parameters(), policy.num_parameters(trained=True)
    if policy.adapter is None:
        return f"{num_all / 1e6:,.1f}M parameters"
    return f"{num_trained:,} trained parameters ({num_trained / num_all:.2%} of {num_all / 1e6:,.1f}M)"
