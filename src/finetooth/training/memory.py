"""Whether the device's memory holds the run: its largest forward pass is rehearsed before the first step."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import Ranks
from finetooth.base.errors import ConfigError, DeviceMemoryError, is_out_of_memory, problem
from finetooth.base.machine import host_memory
from finetooth.batching.collate import Batch
from finetooth.batching.largest import LargestPass
from finetooth.batching.packing import Layout
from finetooth.config.schema import SFTConfig
from finetooth.model.policy import PolicyModel
from finetooth.model.shape import shape_of_fields
from finetooth.training.footprint import footprint
from finetooth.training.optimizer import new_states
from finetooth.training.parallel import SharedPolicy

# Memory is ample from so many times the estimate on, which is right to about a fifth.
_AMPLE = 4
_LESS_TO_TRAIN = (
    "lower data.max_length, set parallel.shard, or keep less per parameter on the device than the 16 bytes "
    "of fp32, bf16 and fp16: training.optimizer: adamw_8bit (10), training.precision: bf16-pure (8 to 10), "
    "parallel.offload_optimizer: true (8), an adapter (about 2)"
)
_LESS_TO_LOAD = (
    "keep less of each parameter than the 4 bytes of float32: "
    "training.precision: bf16-pure (2), an adapter (2 with bf16), adapter.type: qlora (about 0.5)"
)


def find_layout(
    layout: Layout,
    try_layout: Callable[[Layout], LargestPass | None],
    *,
    failed: LargestPass,
    longest_document: int,
    devices: DeviceManager,
) -> tuple[Layout | None, DeviceMemoryError]:
    """The first of ever smaller layouts that fits, if one does, and the error that names it.

    try_layout: the largest forward pass of a layout where it does not fit, else None.
    failed:     that of `layout` itself.
    """
    fitting = smaller(layout, longest_document=longest_document)
    while fitting is not None and try_layout(fitting) is not None:
        fitting = smaller(fitting, longest_document=longest_document)
    return fitting, _refuse(failed, fitting, layout, devices)


def smaller(layout: Layout, *, longest_document: int) -> Layout | None:
    """Half the rows per forward pass, or half the tokens per row; None where neither can be less.

    >>> smaller(Layout(packing=True, row_tokens=4096), longest_document=3000)
    Layout(packing=True, row_tokens=3000, rows_at_once=1)
    """
    if layout.rows_at_once > 1:
        return replace(layout, rows_at_once=layout.rows_at_once // 2)
    if not layout.packing or layout.row_tokens <= longest_document:
        return None
    return replace(layout, row_tokens=max(longest_document, layout.row_tokens // 2))


def fits(
    shared: SharedPolicy,
    batch: Batch,
    *,
    optimizer: torch.optim.Optimizer,
    devices: DeviceManager,
    has_others: bool = True,
) -> bool:
    """Whether every rank's memory holds a forward and backward pass of this batch, as in the midst of a run.

    Gradients and optimiser states are there meanwhile; nothing of it stays. Every rank must ask.
    has_others: whether a step has further passes, whose gradients are summed.
    """
    failed = False
    try:
        _rehearse(shared, batch, optimizer, devices, has_others)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    optimizer.zero_grad()
    shared.sums.clear()
    release(devices)
    return not shared.ranks.highest(int(failed))


def is_ample(
    policy: PolicyModel, config: SFTConfig, pass_tokens: int, *, devices: DeviceManager, ranks: Ranks
) -> bool:
    """Whether the host's free memory is several times what such a forward and backward pass takes on a CPU.

    By sizes alone: false where config.json does not name them, or where attention keeps its scores, which
    the estimate leaves out. Every rank must ask.
    """
    fields = policy.model.config.to_dict()
    try:
        shape = shape_of_fields(fields)
    except ConfigError:
        return False
    if fields.get("attn_logit_softcapping") is not None:
        return False
    needed = footprint(
        shape,
        config.training,
        config.adapter,
        precision=devices.precision,
        device_type=devices.device.type,
        pass_tokens=pass_tokens,
        recompute="nothing",
        background=config.checkpoints.background,
    )
    _, free = host_memory()
    return not ranks.highest(int(_AMPLE * needed.total * ranks.local_world_size > free))


@contextlib.contextmanager
def telling_what_loads(devices: DeviceManager, *, is_sharded: bool) -> Iterator[None]:
    """Within it a policy is loaded. Raises DeviceMemoryError, with what needs less, where it does not fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fact = "the parameters do not fit"
        remedy = (
            f"share them among more devices, or {_LESS_TO_LOAD}"
            if is_sharded
            else f"set parallel.shard, or {_LESS_TO_LOAD}"
        )
        raise DeviceMemoryError(problem(f"memory of {devices.describe()}", fact, remedy)) from None


def release(devices: DeviceManager) -> None:
    """Gives back what a failed pass held, so that another one meets the memory as it was before."""
    gc.collect()
    if devices.device.type == "cuda":
        torch.cuda.empty_cache()


def _refuse(
    largest: LargestPass, fitting: Layout | None, layout: Layout, devices: DeviceManager
) -> DeviceMemoryError:
    fact = f"a forward pass of {largest.num_tokens:,} tokens, as in step {largest.step}, does not fit"
    if fitting is None:
        remedy = f"not even the longest document alone fits; {_LESS_TO_TRAIN}"
    else:
        settings = ", ".join(
            f"training.{name}: {getattr(fitting, name)}"
            for name in ("row_tokens", "rows_at_once")
            if getattr(fitting, name) != getattr(layout, name)
        )
        remedy = f"{settings} was tried and fits; write it, or add --auto-fit"
    return DeviceMemoryError(problem(f"memory of {devices.describe()}", fact, remedy))


def _rehearse(
    shared: SharedPolicy,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    devices: DeviceManager,
    has_others: bool,
) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # The states are allocated in the first step, and gradients stay while a step accumulates.
    states = [
        new_states(optimizer, parameter) for parameter in parameters if parameter not in optimizer.state
    ]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    if has_others and not shared.is_sharded:
        shared.sums.take(parameters)
    # Gradients are sent to the other ranks only where they are shared parts: else one rank alone may fail.
    with shared.accumulating(is_last=shared.is_sharded):
        with devices.autocast():
            loss_sum = shared.loss_sum(batch.to(devices.device), gradient_scale=1.0)
        shared.backward(loss_sum)
    del states
