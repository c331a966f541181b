"""`finetooth plan`: what a run will do and hold, told from settings and documents; loads no parameters."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from finetooth.base.errors import ConfigError, problem
from finetooth.base.machine import Machine, gigabytes, this_machine
from finetooth.base.terminal import print_line
from finetooth.batching.largest import LargestPass, largest_pass
from finetooth.batching.packing import (
    Layout,
    Row,
    document_costs,
    forward_passes,
    lay_out,
    layout_of,
)
from finetooth.batching.row_lengths import padded_length, row_lengths
from finetooth.batching.schedule import Schedule, schedule_of
from finetooth.config.schema import SFTConfig
from finetooth.config.sources import describe_sources
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.model.shape import ModelShape, shape_of
from finetooth.reporting.summary import summary_data, summary_remarks
from finetooth.training.footprint import KEPT, ComputedIn, Footprint, Recompute, footprint

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


def plan(
    config: SFTConfig, *, world: int = 1, gpu_memory: str | None = None, console: Console
) -> dict[str, Any]:
    """Prints documents, steps, rows, load and memory of a run; returns the same as one JSON object.

    world: how many ranks share the run. gpu_memory: what each of their GPUs has, such as "80GB"; default:
    what this machine has. Memory is an estimate, to about a fifth. Raises ConfigError and DataError as
    `prepare_data` does, and ConfigError for a model that is absent.
    """
    machine = this_machine()
    available, device_type = _available(machine, gpu_memory)
    shape = shape_of(config.model)
    prepared = prepare_data(config, console=console)
    schedule = schedule_of(config.training, prepared.train_documents)
    layout = layout_of(config.training)
    among = row_lengths(schedule, layout, device_type=device_type, world_size=world)
    load = _load(schedule, layout, world, among)
    largest = largest_pass(schedule, layout, world_size=world)
    pass_tokens = _places(schedule, largest.rows, layout, among)
    memory = _memory(config, shape, pass_tokens, world=world, available=available, device_type=device_type)
    warnings = _warnings(config, schedule, load, memory, world)
    for name, text in _rows(config, prepared, schedule, load, largest, memory, world):
        print_line(console, f"{name:<{_WIDTH_OF_NAMES}}{text}")
    for line in (*summary_remarks(prepared, config), *warnings):
        print_line(console, line)
    return {
        "data": summary_data(prepared),
        "schedule": schedule.describe(),
        "world": world,
        "load": dataclasses.asdict(load),
        "largest_pass": {"step": largest.step, "tokens": largest.num_tokens},
        "memory": {
            **dataclasses.asdict(memory.parts),
            "total": memory.parts.total,
            "available": available,
            "fits": memory.fits,
            "recompute": memory.recompute,
        },
        "warnings": warnings,
    }


def _available(machine: Machine, gpu_memory: str | None) -> tuple[int, str]:
    """Bytes that one device has free, and its kind."""
    if gpu_memory is not None:
        if (match := _SIZE.fullmatch(gpu_memory)) is None:
            raise ConfigError(problem("--gpu-memory", f"found {gpu_memory!r}", "write e.g. 80GB"))
        return int(float(match[1]) * _UNITS[match[2]]), "cuda"
    if machine.gpus:
        return min(gpu.free for gpu in machine.gpus), "cuda"
    return machine.free, "cpu"


def _load(schedule: Schedule, layout: Layout, world: int, among: Sequence[int]) -> _Load:
    count = min(schedule.num_steps, _STEPS_LOOKED_AT)
    numbers = np.unique(np.linspace(1, schedule.num_steps, count).astype(int)).tolist()
    num_rows, num_tokens, num_places, imbalances = 0, 0, 0, list[float]()
    for step in map(schedule.step, numbers):
        ranks = lay_out(step.documents, schedule.lengths[step.documents], layout=layout, world_size=world)
        costs = [int(_costs(schedule, of_rank).sum()) for of_rank in ranks]
        imbalances.append(max(costs) * world / sum(costs))
        num_rows = max(num_rows, len(ranks[0]))
        num_tokens += step.num_tokens
        num_places += sum(_places(schedule, of_rank, layout, among) for of_rank in ranks)
    mean_tokens = num_tokens / len(numbers) / world
    return _Load(num_rows, num_tokens / num_places, float(np.mean(imbalances)), mean_tokens)


def _costs(schedule: Schedule, rows: Sequence[Row]) -> np.ndarray:
    return document_costs(schedule.lengths[[document for row in rows for document in row]])


def _places(schedule: Schedule, rows: list[Row], layout: Layout, among: Sequence[int]) -> int:
    """Tokens that a rank's passes compute, padding included; among: the lengths that rows have."""
    passes = forward_passes(rows, layout.rows_at_once)
    return sum(len(of_pass) * padded_length(of_pass, schedule.lengths, among) for of_pass in passes)


def _memory(
    config: SFTConfig,
    shape: ModelShape,
    pass_tokens: int,
    *,
    world: int,
    available: int,
    device_type: str,
) -> _Memory:
    """With the first of what may be computed again that memory holds, or else the last."""
    chosen = config.training.recompute
    ladder: list[Recompute] = list(KEPT) if chosen == "auto" else [chosen]
    precision: ComputedIn = "bf16" if device_type == "cuda" else "fp32"
    if config.training.precision != "auto":
        precision = config.training.precision
    memory: _Memory | None = None
    for recompute in ladder:
        parts = footprint(
            shape,
            config.training,
            config.adapter,
            precision=precision,
            device_type=device_type,
            pass_tokens=pass_tokens,
            recompute=recompute,
        )
        memory = _Memory(_shared(parts, config, world), available, recompute)
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


def _warnings(config: SFTConfig, schedule: Schedule, load: _Load, memory: _Memory, world: int) -> list[str]:
    warnings: list[str] = []
    row_tokens = config.training.row_tokens
    if world > 1 and load.tokens < row_tokens:
        fact = f"a step gives each of {world:,} ranks {load.tokens:,.0f} tokens"
        fact, remedy = f"{fact}, less than a row of {row_tokens:,}", "use fewer ranks, or larger steps"
        warnings.append(problem("training.global_batch_size", fact, remedy))
    if not memory.fits:
        needed, available = gigabytes(memory.parts.total), gigabytes(memory.available)
        warnings.append(problem("memory", f"about {needed} are needed, and {available} are free", _FITTING))
    return warnings


def _rows(
    config: SFTConfig,
    prepared: PreparedData,
    schedule: Schedule,
    load: _Load,
    largest: LargestPass,
    memory: _Memory,
    world: int,
) -> list[tuple[str, str]]:
    """What is printed: names, and what they are."""
    counts = prepared.counts["train"]
    described: Any = schedule.describe()
    share = described["num_targets"] / described["num_tokens"]
    per_step = schedule.num_documents / schedule.steps_per_epoch
    ranks = "1 rank" if world == 1 else f"{world:,} ranks"
    documents = f"{schedule.num_documents:,}, the longest of {described['longest_document']:,} tokens"
    steps = f"{schedule.num_steps:,}, {schedule.steps_per_epoch:,} per epoch, {per_step:,.1f} documents each"
    return [
        ("records", f"{describe_sources(config.data.train)}: {counts.kept:,} kept of {counts.records:,}"),
        ("documents", documents),
        ("tokens", f"{described['num_tokens']:,} per epoch, {share:.0%} of them targets"),
        ("steps", steps),
        ("rows", f"up to {load.rows:,} per rank and step, {1 - load.fill:.0%} of it padding"),
        ("load", f"{ranks}, the busiest {load.imbalance:.2f} times the mean"),
        ("largest pass", f"{largest.num_tokens:,} tokens, in step {largest.step:,}"),
        *((name, gigabytes(size)) for name, size in dataclasses.asdict(memory.parts).items()),
        ("together", _verdict(memory)),
    ]


def _verdict(memory: _Memory) -> str:
    sizes = f"about {gigabytes(memory.parts.total)} of {gigabytes(memory.available)} per device"
    again = "" if memory.recompute == "nothing" else f", recompute: {memory.recompute}"
    return f"{sizes}: {'fits' if memory.fits else 'does not fit'}{again}"
