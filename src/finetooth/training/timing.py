"""Times what a run does: some of its steps, of its evaluation, of its answers, the beginning of a checkpoint.

All of it is done by what trains, with a trainer that is thrown away afterwards. What takes long is measured
in part; each result says how much of it was.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE
from finetooth.base.files import FileEntry
from finetooth.batching.largest import largest_pass
from finetooth.batching.packing import layout_of
from finetooth.data.records import DocumentSource
from finetooth.evaluation.dev_loss import measure_loss, sample_documents
from finetooth.evaluation.exact_match import answer_documents
from finetooth.evaluation.generation import ROWS_AT_ONCE
from finetooth.model.flops import flops_per_token
from finetooth.model.shape import ModelShape
from finetooth.training.dealt_files import Contents, common_folder, write_contents
from finetooth.training.duration import Part, WeighedSteps, evaluated_steps, saved_steps
from finetooth.training.progress import ProgressView
from finetooth.training.trainer import SFTTrainer

# Seconds for which steps, evaluations and answers are measured, unless the least of each takes longer.
_STEPS_SECONDS, _LOSSES_SECONDS, _ANSWERS_SECONDS = 20.0, 10.0, 15.0
_FEWEST_STEPS, _MOST_STEPS = 3, 64
# The first steps allocate memory and plan products; on a GPU, for each length of rows.
_WARM_UP = {"cuda": 8}
_FIRST_DOCUMENTS, _FIRST_TOKENS, _GROWTH = 16, 4, 4
_WRITTEN_BYTES = 1 << 28


def time_steps(trainer: SFTTrainer, weighed: WeighedSteps) -> Part:
    """All steps of a run, from some that are spread over their costs.

    The first ones, which warm up, count once. The policy is updated as its settings say.
    """
    schedule, places = trainer.schedule, weighed.spread(_MOST_STEPS)
    view = ProgressView(trainer.console, first_step=1, num_steps=schedule.num_steps)

    def seconds_of(place: int) -> float:
        step = schedule.step(int(weighed.numbers[place]))
        return _seconds(lambda: trainer.update(step, view), trainer.devices)

    num_warm_up = min(_WARM_UP.get(trainer.devices.device.type, 1), schedule.num_steps)
    warm_up = sum(seconds_of(places[0]) for _ in range(num_warm_up))
    measured: list[float] = []
    end = time.perf_counter() + _STEPS_SECONDS
    for place in itertools.cycle(places):
        measured.append(seconds_of(place))
        is_over = time.perf_counter() > end or len(measured) == _MOST_STEPS
        if is_over and len(measured) >= _FEWEST_STEPS:
            break
    done = list(itertools.islice(itertools.cycle(places), len(measured)))
    each = weighed.mean_seconds(done, measured)
    once = max(0.0, warm_up - num_warm_up * each)
    return Part(once + schedule.num_steps * each, "steps", len(set(done)), schedule.num_steps)


def time_losses(trainer: SFTTrainer, shape: ModelShape) -> Part:
    """The losses of all evaluations of a run, from one of them or a part of one."""
    config = trainer.config
    times = len(evaluated_steps(config, trainer.schedule.num_steps))
    sources = (
        (trainer.train_documents, config.evaluation.train_documents),
        (trainer.dev_documents, None),
    )
    seconds, measured, in_all = 0.0, 0, 0
    for documents, limit in sources:
        if documents is not None:
            numbers = sample_documents(documents, limit, seed=config.training.seed)
            of_source, count = _time_losses_of(trainer, documents, numbers, shape)
            seconds, measured, in_all = seconds + of_source, measured + count, in_all + len(numbers)
    return Part(times * seconds, "documents", measured, in_all, times)


def time_answers(trainer: SFTTrainer) -> Part | None:
    """The answers of all evaluations of a run, from one batch of them; None where none are asked for.

    The base answers, which often goes on to `max_new_tokens`: a trained policy may be quicker.
    """
    settings, dev, template = trainer.config.evaluation, trainer.dev_documents, trainer.template
    if settings.exact_match is None or dev is None or template is None:
        return None
    numbers = sample_documents(dev, settings.exact_match_records, seed=trainer.config.training.seed)
    asked = [number for number in numbers.tolist() if dev.document(number).prompt_length]
    most, extractor = settings.max_new_tokens, settings.exact_match

    def seconds_of(num_tokens: int) -> float:
        def answer() -> None:
            answer_documents(
                trainer.policy,
                dev,
                numbers=asked[:ROWS_AT_ONCE],
                template=template,
                extractor=extractor,
                max_new_tokens=num_tokens,
                devices=trainer.devices,
            )

        return _seconds(answer, trainer.devices)

    seconds_of(1)
    first, num_tokens = seconds_of(1), min(_FIRST_TOKENS, most)
    while True:
        seconds = seconds_of(num_tokens)
        more = min(_GROWTH * num_tokens, most)
        if num_tokens == most or seconds * more / num_tokens > _ANSWERS_SECONDS:
            break
        num_tokens = more
    per_token = max(0.0, seconds - first) / max(1, num_tokens - 1)
    times = len(evaluated_steps(trainer.config, trainer.schedule.num_steps))
    num_batches = len(asked) / max(1, len(asked[:ROWS_AT_ONCE]))
    whole = (seconds + (most - num_tokens) * per_token) * num_batches
    return Part(times * whole, "tokens of each answer", num_tokens, most, times)


def time_saving(trainer: SFTTrainer, folder: Path) -> tuple[Part, Part]:
    """All checkpoints of a run, and its `final/`, from the beginning of one that is written into a folder.

    Every evaluation counts as the best so far, which is saved. What is written in the background costs what
    it takes of the processor, where that trains; the last one is waited for.
    """
    steps = saved_steps(trainer.config, trainer.schedule.num_steps, has_dev=trainer.dev_documents is not None)
    is_beside = trainer.config.checkpoints.background
    started = time.perf_counter()
    contents = trainer.checkpoints.gather(trainer.state, policy=trainer.policy, optimizer=trainer.optimizer)
    gathering = time.perf_counter() - started
    beginning = _beginning(contents, _WRITTEN_BYTES)
    on_processor = time.process_time()
    writing = _seconds(lambda: _write(beginning, folder), trainer.devices)
    on_processor = time.process_time() - on_processor
    scale = contents.num_bytes / beginning.num_bytes
    while_training = scale * (on_processor if _shares_processor(trainer.devices) else 0.0)
    others = (len(steps) - 1) * (while_training if is_beside else scale * writing)
    seconds = len(steps) * gathering + others + scale * writing
    of_policy = sum(
        tensor.nbytes
        for file, tensors in contents.tensors.items()
        if not file.startswith("optimizer")
        for tensor in tensors.values()
    )
    final = scale * writing * of_policy / contents.num_bytes
    parts = (
        Part(seconds, "bytes", beginning.num_bytes, contents.num_bytes, len(steps)),
        Part(final, "bytes", min(beginning.num_bytes, of_policy), of_policy),
    )
    if is_beside and len(steps) > 1:
        held = [contents, beginning]
        del contents, beginning
        _train_beside(trainer, held, seconds=scale * writing)
    return parts


def _train_beside(trainer: SFTTrainer, held: list[Contents], *, seconds: float) -> None:
    """Trains the step with the largest pass, while a copy is held as long as it takes to be written."""
    largest = largest_pass(trainer.schedule, trainer.updates.layout).step
    view = ProgressView(trainer.console, first_step=1, num_steps=trainer.schedule.num_steps)
    written = threading.Timer(seconds, held.clear)
    written.start()
    try:
        trainer.update(trainer.schedule.step(largest), view)
    finally:
        written.cancel()
        written.join()


def _time_losses_of(
    trainer: SFTTrainer, documents: DocumentSource, numbers: np.ndarray, shape: ModelShape
) -> tuple[float, int]:
    """Seconds for all of the numbered documents, and how many of them were measured."""
    layout = layout_of(trainer.config.training, can_pack=trainer.policy.why_not_packed is None)

    def cost(some: np.ndarray) -> float:
        lengths = documents.lengths[some]
        share = documents.num_targets[some].sum() / lengths.sum()
        return float(lengths.sum() * flops_per_token(shape, lengths, share, lora=False))

    count = min(_FIRST_DOCUMENTS, len(numbers))
    while True:
        some = numbers[:count]
        seconds = _seconds(
            lambda some=some: measure_loss(
                trainer.policy, documents, numbers=some, layout=layout, devices=trainer.devices
            ),
            trainer.devices,
        )
        more = min(_GROWTH * count, len(numbers))
        if count == len(numbers) or seconds * more / count > _LOSSES_SECONDS:
            return seconds * cost(numbers) / cost(some), count
        count = more


def _beginning(contents: Contents, most: int) -> Contents:
    """At most so many bytes of the tensors, in the files that they belong to; texts are kept."""
    left, tensors = most, dict[str, dict[str, torch.Tensor]]()
    for file, of_file in contents.tensors.items():
        for name, tensor in of_file.items():
            part = tensor if tensor.nbytes <= left else tensor.reshape(-1)[: left // tensor.itemsize]
            if part.nbytes:
                tensors.setdefault(file, {})[name] = part
                left -= part.nbytes
    return Contents(tensors, contents.texts, most - left)


def _write(contents: Contents, folder: Path) -> None:
    written: dict[str, FileEntry] = {}
    with common_folder(folder, ALONE, written=written) as place:
        written |= write_contents(contents, place, ALONE)


def _shares_processor(devices: DeviceManager) -> bool:
    """Whether writing beside the training takes a core from it."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return devices.device.type == "cpu" and torch.get_num_threads() >= usable


def _seconds(work: Callable[[], object], devices: DeviceManager) -> float:
    """What a piece of work takes, until the device has done it."""
    started = time.perf_counter()
    work()
    if devices.device.type != "cpu":
        torch.accelerator.synchronize(devices.device)
    return time.perf_counter() - started
