"""The verb `train`: records and a base model in, a policy in `final/` out."""

import time
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import FinetoothError, Stopped, problem
from finetooth.config.schema import ModelConfig, SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.records import DocumentSource
from finetooth.data.subset import Subset
from finetooth.model.load import load_policy, refuse_misfits
from finetooth.training.checkpoint import Checkpoint, CheckpointManager
from finetooth.training.final import save_final
from finetooth.training.run_directory import Resume, claim_run_directory, describe_run, write_json
from finetooth.training.trainer import SFTTrainer, TrainResult


def train(
    config: SFTConfig,
    *,
    resume: Resume = "never",
    overfit: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains a policy as the config says; returns what `summary.json` holds.

    resume:  never, must (a run with a checkpoint has to be there) or auto (continue it or start).
    overfit: train on so many documents only, without dev records: the loss must fall to almost nothing.
    Raises Stopped after a signal, once everything is saved.
    """
    console = console or Console(quiet=True)
    started = time.perf_counter()
    output = Path(config.output_dir)
    claim_run_directory(output, resume=resume)
    devices = DeviceManager(config.training.device, config.training.precision)
    prepared = prepare_data(config, console=console)
    train_documents, dev_documents = _documents(prepared, overfit)
    checkpoint = _checkpoint(config, resume, console)
    policy = load_policy(_base(config, checkpoint), devices=devices, seed=config.training.seed)
    refuse_misfits(policy, prepared.tokenizer, longest_document=prepared.longest_document)
    trainer = SFTTrainer(
        config,
        policy=policy,
        template=prepared.template,
        train=train_documents,
        dev=dev_documents,
        devices=devices,
        console=console,
    )
    schedule = trainer.schedule.describe()
    describe_run(
        output, config=config, devices=devices, schedule=schedule, ledger=prepared.folder / "ledger.jsonl"
    )
    _announce(console, trainer, checkpoint)
    summary: dict[str, Any] = {"state": "failed", "output_dir": str(output)}
    try:
        result = trainer.train(resume_from=checkpoint)
        if result.stopped is None:
            save_final(output / "final", policy=policy, template=prepared.template, config=config)
        summary |= _figures(trainer, result, state="finished" if result.stopped is None else "stopped")
    finally:
        summary["seconds"] = round(time.perf_counter() - started, 2)
        write_json(output / "summary.json", summary)
    if result.stopped is not None:
        fact = f"stopped after step {result.last_step} of {trainer.schedule.num_steps}, saved"
        raise Stopped(problem(output, fact, "continue with --resume"), exit_code=result.stopped)
    console.print(f"policy: {output / 'final'}", markup=False, highlight=False)
    return summary


def _documents(prepared: PreparedData, overfit: int | None) -> tuple[DocumentSource, DocumentSource | None]:
    if overfit is None:
        return prepared.train, prepared.dev
    return Subset(prepared.train, range(min(overfit, prepared.train.num_documents))), None


def _checkpoint(config: SFTConfig, resume: Resume, console: Console) -> Checkpoint | None:
    if resume == "never":
        return None

    def notify(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    folder = Path(config.output_dir) / "checkpoints"
    checkpoint = CheckpointManager(folder).latest(notify=notify)
    if checkpoint is None and resume == "must":
        raise FinetoothError(problem(folder, "no checkpoint", "start the run anew, or write --resume auto"))
    return checkpoint


def _base(config: SFTConfig, checkpoint: Checkpoint | None) -> ModelConfig:
    """A resumed run loads its parameters from the checkpoint, in the form transformers saved them."""
    return config.model if checkpoint is None else ModelConfig(path=str(checkpoint.folder))


def _announce(console: Console, trainer: SFTTrainer, checkpoint: Checkpoint | None) -> None:
    schedule, total = trainer.schedule, sum(p.numel() for p in trainer.policy.parameters())
    lines = [f"{total / 1e6:,.1f}M parameters on {trainer.devices.describe()}"]
    lines += [f"{schedule.num_steps} steps over {schedule.num_documents:,} documents"]
    if checkpoint is not None:
        done = checkpoint.state.next_step - 1
        lines += [
            f"continues after step {done}" if done < schedule.num_steps else "this run was finished already"
        ]
    console.print("; ".join(lines), markup=False, highlight=False)


def _figures(
    trainer: SFTTrainer, result: TrainResult, *, state: Literal["finished", "stopped"]
) -> dict[str, Any]:
    last = {name: value for line in result.history for name, value in line.items()}
    steps = [trainer.schedule.step(number) for number in range(1, result.last_step + 1)]
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
        "num_tokens": sum(step.num_tokens for step in steps),
        "num_targets": sum(step.num_targets for step in steps),
        **{name: last[name] for name in wanted if name in last},
        "best_step": trainer.state.best_step,
        "peak_memory_mb": round(trainer.devices.peak_memory_mb(), 1),
    }
