"""`finetooth plan`: what a run will do, hold and take, told from settings and documents, or from a trial.

No parameters are loaded here; with `--measure` a process of its own loads them.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from finetooth.base.errors import ConfigError, DeviceMemoryError, problem
from finetooth.base.machine import Machine, gigabytes, this_machine, this_processor
from finetooth.base.product_rate import product_rate
from finetooth.base.terminal import print_line
from finetooth.batching.largest import LargestPass, largest_pass
from finetooth.batching.packing import (
    Layout,
    Row,
    document_costs,
    lay_out,
    layout_of,
)
from finetooth.batching.row_lengths import num_places, row_lengths
from finetooth.batching.schedule import Schedule, schedule_of
from finetooth.config.schema import SFTConfig
from finetooth.config.sources import describe_sources
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.model.shape import ModelShape, shape_of
from finetooth.reporting.summary import summary_data, summary_remarks
from finetooth.reporting.time_view import measured_rows, measured_time, rough_row, rough_time
from finetooth.training.duration import Rough, rough_duration, weigh_steps
from finetooth.training.footprint import KEPT, KEPT_OF_COMPILED, ComputedIn, Footprint, Recompute, footprint
from finetooth.training.trial_process import Trial, run_trial

_STEPS_LOOKED_AT = 100
_WIDTH_OF_NAMES = 14
_RANKS_OF_A_NODE = 8
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([GMT])i?B")
_UNITS = {"M": 1e6, "G": 1e9, "T": 1e12}
_FITTING = (
    "lower data.max_length and training.row_tokens, set parallel.shard, or keep less per parameter: "
    "training.optimizer: adamw_8bit, training.precision: bf16-pure, parallel.offload_optimizer, an adapter"
)


@dataclass(frozen=True, slots=True)
class _Load:
    """How steps lie on the ranks, over up to a hundred steps of the run.

    rows:      most rows of a rank in a step
    fill:      the share of what is computed that is no padding
    imbalance: the cost of the busiest rank by that of the mean, in the mean of the steps
    tokens:    of a step on one rank, in the mean
    """

    rows: int
    fill: float
    imbalance: float
    tokens: float


@dataclass(frozen=True, slots=True)
class _Memory:
    """Parts of memory on one device, what is available, and what the backward pass computes again."""

    parts: Footprint
    available: int
    recompute: Recompute

    @property
    def fits(self) -> bool:
        return self.parts.total <= self.available


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of a run before anything is loaded.

    among: the lengths that rows are padded to. is_here: whether it is one process on this machine's device
    """

    config: SFTConfig
    prepared: PreparedData
    schedule: Schedule
    shape: ModelShape
    layout: Layout
    among: Sequence[int]
    world: int
    device_type: str
    is_here: bool
    load: _Load
    largest: LargestPass
    memory: _Memory


def plan(
    config: SFTConfig,
    *,
    world: int = 1,
    gpu_memory: str | None = None,
    measure: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Prints documents, steps, rows, load, memory and time of a run; returns the same as one JSON object.

    world: how many ranks share the run. gpu_memory: what each of their GPUs has, such as "80GB"; default:
    what this machine has. Memory is an estimate, to about a fifth, and time is told roughly, where it can be.
    measure: a process of its own does once what the run does, which tells the memory and time of the run.
    Raises ConfigError and DataError as `prepare_data` does, ConfigError for a model that is absent, and with
    `measure` DeviceMemoryError where memory does not hold the run.
    """
    if measure:
        _refuse_others(world, gpu_memory)
    planned = _look_ahead(config, world, gpu_memory, console)
    trial = _trial(planned, console) if measure else None
    rough = _rough(planned) if trial is None else None
    warnings = _warnings(planned, is_tried=trial is not None)
    rows = _rows(planned)
    rows += measured_rows(trial) if trial else [rough_row(rough)] if rough else []
    for name, text in rows:
        print_line(console, f"{name:<{_WIDTH_OF_NAMES}}{text}")
    for line in (*summary_remarks(planned.prepared, config), *warnings):
        print_line(console, line)
    memory = planned.memory
    return {
        "data": summary_data(planned.prepared),
        "schedule": planned.schedule.describe(),
        "world": world,
        "load": dataclasses.asdict(planned.load),
        "largest_pass": {"step": planned.largest.step, "tokens": planned.largest.num_tokens},
        "memory": {
            **dataclasses.asdict(memory.parts),
            "total": memory.parts.total,
            "available": memory.available,
            "fits": memory.fits or trial is not None,
            "recompute": memory.recompute,
            "measured": trial.peak_memory if trial else None,
        },
        "time": measured_time(trial) if trial else rough_time(rough) if rough else None,
        "warnings": warnings,
    }


def _look_ahead(config: SFTConfig, world: int, gpu_memory: str | None, console: Console) -> _Plan:
    machine = this_machine()
    available, device_type = _available(machine, config.training.device, gpu_memory)
    shape = shape_of(config.model)
    prepared = prepare_data(config, console=console)
    schedule = schedule_of(config.training, prepared.train_documents)
    layout = layout_of(config.training)
    among = row_lengths(schedule, layout, device_type=device_type, world_size=world)
    largest = largest_pass(schedule, layout, world_size=world)
    pass_tokens = num_places(largest.rows, schedule.lengths, layout, among)
    pass_targets = int(schedule.num_targets[[document for row in largest.rows for document in row]].sum())
    needs = _Needs(config, shape, pass_tokens, pass_targets, world, device_type)
    memory = _memory(needs, available)
    return _Plan(
        config=config,
        prepared=prepared,
        schedule=schedule,
        shape=shape,
        layout=layout,
        among=among,
        world=world,
        device_type=device_type,
        is_here=world == 1 and gpu_memory is None,
        load=_load(schedule, layout, world, among),
        largest=largest,
        memory=memory,
    )


def _refuse_others(world: int, gpu_memory: str | None) -> None:
    """What is measured is one process, on this machine."""
    given = {"--world": world > 1, "--gpu-memory": gpu_memory is not None}
    problems = [
        problem("--measure", "measures one process of this machine", f"leave out {option} or --measure")
        for option, is_given in given.items()
        if is_given
    ]
    if os.environ.get("WORLD_SIZE", "1") != "1":
        problems.append(problem("environment", "several processes measure", "start plan as one process"))
    if problems:
        raise ConfigError(problems)


def _trial(planned: _Plan, console: Console) -> Trial:
    memory = planned.memory
    if memory.parts.parameters > memory.available:
        sizes = f"{gigabytes(memory.parts.parameters)}, and {gigabytes(memory.available)} are free"
        raise DeviceMemoryError(problem("memory", f"the parameters alone take {sizes}", _FITTING))
    with console.status("Trying the run out …"):
        return run_trial(planned.config)


def _rough(planned: _Plan) -> Rough | None:
    """Told for this machine's processor in float32, whose rate is known without loading torch."""
    config, schedule, dev = planned.config, planned.schedule, planned.prepared.dev
    has_bf16 = any("bf16" in known for known in this_processor().instructions)
    is_fp32 = config.training.precision in (("fp32",) if has_bf16 else ("fp32", "auto"))
    if not planned.is_here or planned.device_type != "cpu" or not is_fp32:
        return None
    num_sampled = min(config.evaluation.train_documents, schedule.num_documents)
    evaluated = int(schedule.lengths.mean() * num_sampled) + (int(dev.lengths.sum()) if dev else 0)
    weighed = weigh_steps(
        schedule, planned.layout, planned.shape, among=planned.among, lora=config.adapter.type is not None
    )
    return rough_duration(weighed, config, schedule, evaluated_tokens=evaluated, rate=product_rate())


def _available(machine: Machine, device: str, gpu_memory: str | None) -> tuple[int, str]:
    """Bytes that one device has free, and its kind; device: which one the settings ask for."""
    if gpu_memory is not None:
        if (match := _SIZE.fullmatch(gpu_memory)) is None:
            raise ConfigError(problem("--gpu-memory", f"found {gpu_memory!r}", "write e.g. 80GB"))
        return int(float(match[1]) * _UNITS[match[2]]), "cuda"
    if machine.gpus and device != "cpu":
        return min(gpu.free for gpu in machine.gpus), "cuda"
    return machine.free, "cpu"


def _load(schedule: Schedule, layout: Layout, world: int, among: Sequence[int]) -> _Load:
    count = min(schedule.num_steps, _STEPS_LOOKED_AT)
    numbers = np.unique(np.linspace(1, schedule.num_steps, count).astype(int)).tolist()
    num_rows, num_tokens, places, imbalances = 0, 0, 0, list[float]()
    for step in map(schedule.step, numbers):
        ranks = lay_out(step.documents, schedule.lengths[step.documents], layout=layout, world_size=world)
        costs = [int(_costs(schedule, of_rank).sum()) for of_rank in ranks]
        imbalances.append(max(costs) * world / sum(costs))
        num_rows = max(num_rows, len(ranks[0]))
        num_tokens += step.num_tokens
        places += sum(num_places(of_rank, schedule.lengths, layout, among) for of_rank in ranks)
    mean_tokens = num_tokens / len(numbers) / world
    return _Load(num_rows, num_tokens / places, float(np.mean(imbalances)), mean_tokens)


def _costs(schedule: Schedule, rows: Sequence[Row]) -> np.ndarray:
    return document_costs(schedule.lengths[[document for row in rows for document in row]])


@dataclass(frozen=True, slots=True)
class _Needs:
    """What memory depends on; pass_tokens, pass_targets: of the largest forward pass, padding included."""

    config: SFTConfig
    shape: ModelShape
    pass_tokens: int
    pass_targets: int
    world: int
    device_type: str


def _memory(needs: _Needs, available: int) -> _Memory:
    """With the first of what may be computed again that memory holds, or else the last."""
    training = needs.config.training
    asked, all_of_them = training.recompute, KEPT_OF_COMPILED if training.compile else tuple(KEPT)
    ladder: tuple[Recompute, ...] = all_of_them if asked == "auto" else (asked,)
    precision: ComputedIn = "bf16" if needs.device_type == "cuda" else "fp32"
    if training.precision != "auto":
        precision = training.precision
    memory: _Memory | None = None
    for recompute in ladder:
        parts = footprint(
            needs.shape,
            training,
            needs.config.adapter,
            precision=precision,
            device_type=needs.device_type,
            pass_tokens=needs.pass_tokens,
            pass_targets=needs.pass_targets,
            recompute=recompute,
            background=needs.config.checkpoints.background,
        )
        memory = _Memory(_shared(parts, needs.config, needs.world), available, recompute)
        if memory.fits:
            break
    assert memory is not None, "there is always one to try"
    return memory


def _shared(parts: Footprint, config: SFTConfig, world: int) -> Footprint:
    """What is left of it on a device where ranks share parameters, or the host keeps optimizer states."""
    sharers = {None: 1, "all": world, "node": min(world, _RANKS_OF_A_NODE)}[config.parallel.shard]
    return dataclasses.replace(
        parts,
        parameters=parts.parameters // sharers,
        gradients=parts.gradients // sharers,
        optimizer=0 if config.parallel.offload_optimizer else parts.optimizer // sharers,
    )


def _warnings(planned: _Plan, *, is_tried: bool) -> list[str]:
    """is_tried: whether memory was seen to hold it, whatever the estimate says."""
    warnings: list[str] = []
    world, load, memory = planned.world, planned.load, planned.memory
    row_tokens = planned.config.training.row_tokens
    if world > 1 and load.tokens < row_tokens:
        fact = f"a step gives each of {world:,} ranks {load.tokens:,.0f} tokens"
        fact, remedy = f"{fact}, less than a row of {row_tokens:,}", "use fewer ranks, or larger steps"
        warnings.append(problem("training.global_batch_size", fact, remedy))
    if not memory.fits and not is_tried:
        needed, available = gigabytes(memory.parts.total), gigabytes(memory.available)
        warnings.append(problem("memory", f"about {needed} are needed, and {available} are free", _FITTING))
    return warnings


def _rows(planned: _Plan) -> list[tuple[str, str]]:
    """What is printed: names, and what they are."""
    schedule, load, memory, world = planned.schedule, planned.load, planned.memory, planned.world
    counts, sources = planned.prepared.counts["train"], describe_sources(planned.config.data.train)
    described: Any = schedule.describe()
    share = described["num_targets"] / described["num_tokens"]
    per_step = schedule.num_documents / schedule.steps_per_epoch
    ranks = "1 rank" if world == 1 else f"{world:,} ranks"
    documents = f"{schedule.num_documents:,}, the longest of {described['longest_document']:,} tokens"
    steps = f"{schedule.num_steps:,}, {schedule.steps_per_epoch:,} per epoch, {per_step:,.1f} documents each"
    return [
        (
            "records",
            f"{sources}: {counts.kept:,} kept of {counts.records:,}",
        ),
        ("documents", documents),
        ("tokens", f"{described['num_tokens']:,} per epoch, {share:.0%} of them targets"),
        ("steps", steps),
        ("rows", f"up to {load.rows:,} per rank and step, {1 - load.fill:.0%} of it padding"),
        ("load", f"{ranks}, the busiest {load.imbalance:.2f} times the mean"),
        ("largest pass", f"{planned.largest.num_tokens:,} tokens, in step {planned.largest.step:,}"),
        *((name, gigabytes(size)) for name, size in dataclasses.asdict(memory.parts).items()),
        ("together", _verdict(memory)),
    ]


def _verdict(memory: _Memory) -> str:
    sizes = f"about {gigabytes(memory.parts.total)} of {gigabytes(memory.available)} per device"
    again = "" if memory.recompute == "nothing" else f", recompute: {memory.recompute}"
    return f"{sizes}: {'fits' if memory.fits else 'does not fit'}{again}"
