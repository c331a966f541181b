"""Policies on the records of a run: prepared once, then one policy after the other is loaded and examined."""

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from finetooth.base.devices import DeviceManager
from finetooth.config.schema import SFTConfig
from finetooth.data.preparation import PreparedData, prepare_data
from finetooth.evaluation.dev_loss import sample_documents
from finetooth.evaluation.exact_match import Answered, answer_documents
from finetooth.evaluation.fitting import require_fit, require_same_ids, shapes_of
from finetooth.evaluation.speaker import knows_tokens
from finetooth.evaluation.targets import Target, told_time
from finetooth.model.load import refuse_misfits
from finetooth.model.policy import PolicyModel
from finetooth.model.vocabulary import add_rows

if TYPE_CHECKING:
    from rich.console import Console


def prepare_for(
    targets: Sequence[Target], config: SFTConfig, *, console: "Console | None" = None
) -> PreparedData:
    """The records that a config describes, on which every target is proved to be measurable.

    Where a template tells the time, it is that of the first run. Raises ConfigError with every target that is
    absent or does not fit; what a single one lacks is told when it is loaded, which is next.
    """
    shapes = shapes_of(targets) if len(targets) > 1 else None
    run = next((target.run for target in targets if target.run is not None), None)
    prepared = prepare_data(config, console=console, now=None if run is None else told_time(run))
    if shapes is not None:
        require_fit(targets, shapes, prepared)
    require_same_ids(targets, prepared, config)
    return prepared


def free_memory(devices: DeviceManager) -> None:
    """Lets go of a policy that nobody holds any longer, before the next one is loaded."""
    gc.collect()
    if devices.device.type == "cuda":
        torch.cuda.empty_cache()


def make_ready(policy: PolicyModel, target: Target, prepared: PreparedData) -> None:
    """Gives a policy rows for tokens that the records' template added, where it was not trained with them.

    Raises ConfigError where it lacks an embedding or a position for a document.
    """
    if not knows_tokens(target, prepared.template):
        add_rows(policy, prepared.template)
    refuse_misfits(policy, prepared.tokenizer, longest_document=prepared.longest_document)


def answer_dev(
    policy: PolicyModel,
    prepared: PreparedData,
    config: SFTConfig,
    *,
    devices: DeviceManager,
    limit: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> dict[int, Answered]:
    """The answers to the dev records, by the numbers of their documents; `limit`: to a fixed sample of them.

    on_progress: called with the number of records answered since the last call, and that of all.
    There must be dev records, and `evaluation.exact_match` must be set.
    """
    dev, settings = prepared.dev, config.evaluation
    assert dev is not None, "asked for only where there are dev records"
    assert settings.exact_match is not None, "asked for only where answers are compared"
    numbers = sample_documents(dev, limit, seed=config.training.seed).tolist()
    asked = [number for number in numbers if dev.document(number).prompt_length]
    answered = answer_documents(
        policy,
        dev,
        numbers=asked,
        template=prepared.template,
        extractor=settings.exact_match,
        max_new_tokens=settings.max_new_tokens,
        devices=devices,
        on_progress=None if on_progress is None else lambda num: on_progress(num, len(asked)),
    )
    return dict(zip(asked, answered, strict=True))
