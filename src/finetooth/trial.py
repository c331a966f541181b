"""The verb `trial`, which `plan --measure` starts in a process of its own: does once what training does.

It begins as `finetooth train` does and ends as that ends, so that its process takes the time and the memory
that those of a run take. Everything it writes lies in the run directory that it is given, which its caller
removes.
"""

import contextlib
import dataclasses
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import DeviceMemoryError, is_out_of_memory, problem
from finetooth.base.machine import host_memory
from finetooth.batching.row_lengths import row_lengths
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.model.shape import shape_of
from finetooth.model.start import start_policy
from finetooth.reporting.data_card import write_data_card
from finetooth.reporting.report_page import write_report
from finetooth.reporting.run_reading import read_run
from finetooth.training.duration import Part, weigh_steps
from finetooth.training.garbage import collecting_between_steps
from finetooth.training.memory import telling_what_loads
from finetooth.training.run_directory import describe_run
from finetooth.training.timing import time_answers, time_losses, time_saving, time_steps
from finetooth.training.trainer import SFTTrainer

_STATUS_FILE = Path("/proc/self/status")


def trial(config: SFTConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Measures the parts of a run; returns them, with the moments at which it was ready and had ended.

    Moments are those of `time.monotonic`, which all processes of a machine share. Raises what training raises
    before its first step, DeviceMemoryError with what fits among it.
    """
    console = console or Console(quiet=True)
    devices = DeviceManager(config.training.device, config.training.precision)
    prepared = prepare_data(config, console=console)
    trainer = _trainer(config, prepared, devices)
    output = Path(config.output_dir)
    with _bounded_by_free_memory(devices):
        ready_at = _rehearse(trainer)
        with collecting_between_steps():
            parts = _measure(trainer, output)
    started = time.perf_counter()
    write_report(read_run(str(output)))
    parts["report"] = Part(time.perf_counter() - started, "pages", 1, 1)
    return {
        "device": devices.describe(),
        "ready_at": ready_at,
        "parts": {name: dataclasses.asdict(part) for name, part in parts.items()},
        "peak_memory": round(devices.peak_memory_mb() * 1e6),
        "recompute": trainer.updates.recompute,
        "ended_at": time.monotonic(),
    }


def _trainer(config: SFTConfig, prepared: PreparedData, devices: DeviceManager) -> SFTTrainer:
    """A trainer that is about to rehearse, and what a run directory holds by then."""
    output = Path(config.output_dir)
    with telling_what_loads(devices, is_sharded=config.parallel.shard is not None):
        policy, _ = start_policy(config, prepared.template, devices=devices)
    trainer = SFTTrainer(
        config,
        policy=policy,
        template=prepared.template,
        train=prepared.train_documents,
        dev=prepared.dev,
        devices=devices,
    )
    schedule, ledger = trainer.schedule.describe(), prepared.folder / "ledger.jsonl"
    describe_run(output, config=config, devices=devices, schedule=schedule, ledger=ledger, template={})
    documents, layout = prepared.train_documents, trainer.updates.layout
    write_data_card(output, prepared, config, documents=documents, layout=layout)
    policy.train()
    return trainer


def _rehearse(trainer: SFTTrainer) -> float:
    """Returns the moment at which a run would be ready, which rehearses only where memory is not ample."""
    is_spared = trainer.updates.has_room_to_spare(first=1)
    before = time.monotonic()
    trainer.updates.rehearse(first=1)
    return before if is_spared else time.monotonic()


def _measure(trainer: SFTTrainer, output: Path) -> dict[str, Part]:
    shape, layout, schedule = shape_of(trainer.config.model), trainer.updates.layout, trainer.schedule
    among = row_lengths(schedule, layout, device_type=trainer.devices.device.type)
    is_adapter = trainer.config.adapter.type is not None
    weighed = weigh_steps(schedule, layout, shape, among=among, lora=is_adapter)
    parts = {"losses": time_losses(trainer, shape)}
    if (answers := time_answers(trainer)) is not None:
        parts["answers"] = answers
    parts["steps"] = time_steps(trainer, weighed)
    parts["checkpoints"], parts["policy"] = _time_saving(trainer, output / "checkpoint")
    return parts


def _time_saving(trainer: SFTTrainer, folder: Path) -> tuple[Part, Part]:
    try:
        return time_saving(trainer, folder)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fact = "memory does not hold a step beside the copy of the state that a checkpoint is written from"
        remedy = "write false, or lower training.row_tokens"
        raise DeviceMemoryError(problem("checkpoints.background", fact, remedy)) from None


@contextlib.contextmanager
def _bounded_by_free_memory(devices: DeviceManager) -> Iterator[None]:
    """Within it memory beyond what is free is refused, where Linux would end a process that uses it."""
    if devices.device.type != "cpu" or not _STATUS_FILE.is_file():
        yield
        return
    fields = (line.partition(":") for line in _STATUS_FILE.read_text().splitlines())
    own = next(int(value.split()[0]) * 1024 for name, _, value in fields if name == "VmData")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (own + host_memory()[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
