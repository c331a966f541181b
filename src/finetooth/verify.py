"""The verb `verify`: proves on a user's own model and data what training promises.

A few short documents are computed in several ways, and trained for a few steps by the real `finetooth train`
in a temporary folder. Nothing is written into the run directory.
"""

import gc
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ranks_of_environment
from finetooth.base.errors import ConfigError, FinetoothError, problem
from finetooth.base.terminal import print_line
from finetooth.batching.packing import Layout
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.data.records import DocumentSource
from finetooth.data.subset import Subset
from finetooth.model.load import refuse_misfits
from finetooth.model.policy import PolicyModel
from finetooth.model.start import start_policy
from finetooth.reporting.mask_proof import prove_masks
from finetooth.reporting.verdicts import Verdict, conclude, skipped, verdicts_table
from finetooth.training.equivalence import (
    Computed,
    Difference,
    compare,
    compute_alone,
    compute_step,
    measure_leak,
    measure_reload,
)
from finetooth.training.trial_runs import (
    Trial,
    TrialRun,
    free_memory,
    metric_difference,
    parameter_difference,
    write_trial,
)

# Documents are taken from the first of the store; those that are computed are the short ones.
_FIRST_DOCUMENTS = 10_000
_READ_AGAIN = 64
_COMPUTED = 8
_SHORT = 128
# A trial run takes about so long, beside the start of its process, and at least so many steps.
_SECONDS_OF_A_RUN = 4.0
_NUM_STEPS = (6, 40)
# Bytes per parameter: parameters, gradients and two states; two checkpoints and the policy.
_MEMORY_OF_TRAINING = 16
_ROOM_OF_TRIALS = 44


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is known of the model once it was computed with."""

    num_parameters: int
    seconds_per_step: float
    is_balanced: bool


def verify(config: SFTConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Measures every property on a sample and prints the verdicts; returns them, `passed` among them.

    Raises what `prepare_data` and `load_policy` raise.
    """
    console = console or Console(quiet=True)
    if ranks_of_environment().world_size > 1:
        remedy = "start it as one process; it starts others itself"
        raise ConfigError(problem("environment", "verify runs in several processes", remedy))
    started = time.perf_counter()
    devices = DeviceManager(config.training.device, config.training.precision)
    prepared = prepare_data(config, console=console)
    documents = Subset(prepared.train, _short_documents(prepared.train))
    with console.status("Reading records again …"):
        verdicts = list(_judge_masks(prepared, config))
    with tempfile.TemporaryDirectory(prefix="finetooth-verify-") as name:
        folder = Path(name)
        with console.status("Computing steps in several ways …"):
            computed, measured = _judge_steps(prepared, documents, config, devices, folder)
        verdicts += computed
        _free_memory_of(devices)
        with console.status("Training, killing and resuming …"):
            verdicts += _judge_runs(prepared, documents, config, devices, folder, measured)
    console.print(verdicts_table(verdicts))
    return _conclude(verdicts, documents, prepared, devices, time.perf_counter() - started, console)


def _conclude(
    verdicts: Sequence[Verdict],
    documents: DocumentSource,
    prepared: PreparedData,
    devices: DeviceManager,
    seconds: float,
    console: Console,
) -> dict[str, Any]:
    lengths = documents.lengths
    sampled = f"computed: {len(lengths)} of {prepared.train.num_documents:,} documents"
    console.print()
    print_line(console, f"{sampled}, {lengths.min()} to {lengths.max()} tokens long")
    print_line(console, f"on {devices.describe()}, in {seconds:.0f} s")
    return {
        **conclude(verdicts, console),
        "num_documents": len(lengths),
        "num_tokens": int(lengths.sum()),
        "device": devices.describe(),
        "seconds": round(seconds, 1),
    }


def _short_documents(documents: DocumentSource) -> np.ndarray:
    """Numbers of short documents of unequal length: int64 [at most 8], by length."""
    lengths = documents.lengths[:_FIRST_DOCUMENTS]
    order = np.argsort(lengths, kind="stable")
    num_short = max(_COMPUTED, int((lengths <= _SHORT).sum()))
    short = order[:num_short]
    places = np.linspace(0, len(short) - 1, min(_COMPUTED, len(short))).round().astype(np.int64)
    return short[places]


def _judge_masks(prepared: PreparedData, config: SFTConfig) -> Iterator[Verdict]:
    num_candidates = min(_FIRST_DOCUMENTS, prepared.train.num_documents)
    places = np.linspace(0, num_candidates - 1, min(_READ_AGAIN, num_candidates)).round().astype(np.int64)
    proof = prove_masks(prepared, config, numbers=places.tolist())
    wrong = (*proof.others, *proof.unread)
    what = f"{proof.num_documents} documents read, rendered and decoded again"
    yield Verdict("masks", len(wrong), 0, what + _first_of(wrong))
    if not proof.num_answers:
        yield skipped("stop tokens", "no document in the sample is a conversation")
        return
    names = " or ".join(prepared.tokenizer.decode([stop]) for stop in prepared.template.stop_token_ids)
    what = f"{proof.num_answers} answers: the last target is {names}"
    yield Verdict("stop tokens", len(proof.endless), 0, what + _first_of(proof.endless))


def _judge_steps(
    prepared: PreparedData,
    documents: DocumentSource,
    config: SFTConfig,
    devices: DeviceManager,
    folder: Path,
) -> tuple[list[Verdict], _Measured]:
    policy, _ = start_policy(config, prepared.template, devices=devices)
    refuse_misfits(policy, prepared.tokenizer, longest_document=prepared.longest_document)
    policy.train(
        policy.balance is None
    )  # an auxiliary loss is of the rows, and never the same in two layouts
    started = time.perf_counter()
    each = compute_step(policy, documents, layout=_apart(1), devices=devices)
    seconds = time.perf_counter() - started
    verdicts = list(_judge_layouts(policy, documents, each, devices))
    verdicts.append(_judge_isolation(policy, documents, devices))
    reload = measure_reload(
        policy,
        documents,
        template=prepared.template,
        config=config,
        devices=devices,
        folder=folder / "final",
    )
    what = "logits: in memory after an update, of final/ in plain transformers"
    verdicts.append(_verdict("reload", reload, 1e-6, what))
    shutil.rmtree(folder / "final")
    return verdicts, _Measured(policy.num_parameters(), seconds, policy.balance is not None)


def _judge_layouts(
    policy: PolicyModel, documents: DocumentSource, each: Computed, devices: DeviceManager
) -> Iterator[Verdict]:
    """Losses and gradients of the step in other layouts; `each`: with every document in a pass of its own."""
    limit = 1e-5 if devices.precision == "fp32" else 5e-2
    num_documents, longest = len(documents.lengths), int(documents.lengths.max())

    padded = compute_step(policy, documents, layout=_apart(num_documents), devices=devices)
    if policy.why_not_packed is not None:
        yield skipped("packed = padded", policy.why_not_packed)
    else:
        row_tokens = max(longest, -(-int(documents.lengths.sum()) // 2))
        layout = Layout(packing=True, row_tokens=row_tokens, rows_at_once=num_documents)
        packed = compute_step(policy, documents, layout=layout, devices=devices)
        what = "loss and gradients: shared rows, padded rows"
        yield _verdict("packed = padded", compare(packed, padded), limit, what)
    what = f"loss and gradients: {num_documents} forward passes, one"
    yield _verdict("accumulation", compare(each, padded), limit, what)
    others = (compute_step(policy, documents, layout=_apart(size), devices=devices) for size in (2, 3))
    worst = max((compare(other, each) for other in others), key=lambda found: found.measured)
    yield _verdict("micro-batches", worst, limit, "loss and gradients: 2 or 3 rows at once, one")
    own = compute_alone(policy, documents, devices=devices)
    yield _verdict("own loss", compare(each, own), limit, "loss and gradients: finetooth, model(labels=)")


def _judge_isolation(policy: PolicyModel, documents: DocumentSource, devices: DeviceManager) -> Verdict:
    """Bit for bit; a mixture of experts groups its tokens anew, which changes the last bits."""
    if len(documents.lengths) < 2:
        return skipped("isolation", "the store has one document only")
    has_experts = any("experts" in name for name, _ in policy.named_parameters())
    limit = (1e-6 if devices.precision == "fp32" else 5e-2) if has_experts else 0.0
    num_documents = len(documents.lengths)
    layout = Layout(packing=True, row_tokens=int(documents.lengths.sum()))
    if policy.why_not_packed is not None:
        layout = _apart(num_documents)
    leak = measure_leak(policy, documents, layout=layout, devices=devices)
    what = f"hidden states of {num_documents} documents while one changes"
    return _verdict("isolation", leak, limit, what)


def _judge_runs(
    prepared: PreparedData,
    documents: DocumentSource,
    config: SFTConfig,
    devices: DeviceManager,
    folder: Path,
    measured: _Measured,
) -> Iterator[Verdict]:
    needed, free = _ROOM_OF_TRIALS * measured.num_parameters, shutil.disk_usage(folder).free
    if needed > free:
        why = f"trial runs need {needed / 1e9:.1f} GB in {folder.parent}, {free / 1e9:.1f} GB are free"
        yield from (skipped(name, why) for name in ("resume", "2 processes"))
        return
    fewest, most = _NUM_STEPS
    num_steps = int(np.clip(_SECONDS_OF_A_RUN / measured.seconds_per_step, fewest, most))
    trial = write_trial(folder, config, documents, template_name=prepared.template_name, num_steps=num_steps)
    try:
        whole = trial.run("whole")
        shutil.rmtree(whole.folder / "checkpoints")
    except FinetoothError as error:
        yield from (_failed(name, error) for name in ("resume", "2 processes"))
        return
    yield _judge_resume(trial, whole, devices)
    yield _judge_two_processes(trial, whole, devices, measured)


def _judge_resume(trial: Trial, whole: TrialRun, devices: DeviceManager) -> Verdict:
    try:
        resumed = trial.run_killed("killed")
    except FinetoothError as error:
        return _failed("resume", error)
    if resumed is None:
        return skipped("resume", "the run ended before it could be killed")
    run, last_step = resumed
    shutil.rmtree(run.folder / "checkpoints")
    measured = parameter_difference(run, whole)
    if devices.device.type == "cpu" and run.metrics != whole.metrics:
        measured = float("inf")
    limit = 0.0 if devices.device.type == "cpu" else 1e-2
    what = f"{trial.num_steps} steps: killed and resumed after step {last_step}, uninterrupted"
    return Verdict("resume", measured, limit, f"{what}; sha256 {run.sha256[:8]}, {whole.sha256[:8]}")


def _judge_two_processes(
    trial: Trial, whole: TrialRun, devices: DeviceManager, measured: _Measured
) -> Verdict:
    name = "2 processes"
    if why := _why_alone(devices, measured):
        return skipped(name, why)
    try:
        run = trial.run("two", "--nproc", "2")
    except FinetoothError as error:
        return _failed(name, error)
    difference = max(
        metric_difference(run.steps, whole.steps, names=("loss",)),
        metric_difference(run.steps[:1], whole.steps[:1], names=("grad_norm",)),
    )
    limit = 1e-5 if devices.precision == "fp32" else 5e-2
    what = f"losses of {trial.num_steps} steps, norm of the first gradient: 2 processes, 1"
    return Verdict(name, difference, limit, what)


def _why_alone(devices: DeviceManager, measured: _Measured) -> str | None:
    """Why two processes cannot train here, or not the same as one, if so."""
    if measured.is_balanced:
        return "the auxiliary loss of experts depends on which documents share a row"
    if devices.device.type == "cpu":
        needed, free = 2 * _MEMORY_OF_TRAINING * measured.num_parameters, free_memory()
        if free is not None and needed > free:
            return f"two processes need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        return None
    if devices.device.type == "cuda" and torch.cuda.device_count() > 1:
        return None
    return f"one device only ({devices.device})"


def _apart(rows_at_once: int) -> Layout:
    return Layout(packing=False, row_tokens=1, rows_at_once=rows_at_once)


def _failed(name: str, error: FinetoothError) -> Verdict:
    return Verdict(name, float("inf"), 0.0, error.problems[0])


def _verdict(name: str, found: Difference, limit: float, what: str) -> Verdict:
    """Names the place of a difference that is above the limit."""
    return Verdict(name, found.measured, limit, what if found.measured <= limit else f"{what}; {found.place}")


def _first_of(origins: Sequence[str]) -> str:
    return f"; not {origins[0]}" if origins else ""


def _free_memory_of(devices: DeviceManager) -> None:
    """Lets go of the policy's memory, which the trial runs need."""
    gc.collect()
    if devices.device.type == "cuda":
        torch.cuda.empty_cache()
