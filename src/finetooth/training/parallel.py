"""How the ranks of a run share the policy: each holds all of it (DDP), or a part of it (FSDP2).

Each rank computes the gradient of its own rows; gradients are added up once per step. DDP and FSDP2 give the
mean over ranks, so the loss is multiplied by their number, which leaves the sum.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import ConfigError, problem
from finetooth.batching.collate import Batch, collate
from finetooth.config.schema import ParallelConfig
from finetooth.data.records import DocumentSource
from finetooth.model.policy import PolicyModel
from finetooth.training.gradient_sums import GradientSums
from finetooth.training.tensor_files import aligned


@dataclass(frozen=True, slots=True)
class SharedPolicy:
    """A policy as one rank sees it.

    trained:   what the forward pass of training goes through
    sums_once: whether gradients are added up once per step rather than in every forward pass
    sums:      of this rank's gradients, while a step has further passes, where parameters are bf16
    """

    policy: PolicyModel
    trained: nn.Module
    ranks: Ranks
    sums_once: bool = True
    sums: GradientSums = field(default_factory=GradientSums)

    @property
    def is_sharded(self) -> bool:
        """Whether the ranks hold parts of the parameters (FSDP2), which they gather in every forward pass."""
        return isinstance(self.trained, FSDPModule)

    def loss_sum(self, batch: Batch, *, gradient_scale: float) -> torch.Tensor:
        """The weighted loss sum of this rank's batch; a scalar."""
        forward = cast(Callable[..., torch.Tensor], self.trained)
        return forward(batch, gradient_scale=gradient_scale * self.ranks.world_size)

    def backward(self, loss_sum: torch.Tensor) -> None:
        """Adds this rank's gradient to those of the other ranks, or, while `accumulating`, to its own."""
        (loss_sum * self.ranks.world_size).backward()

    @contextlib.contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """The forward and backward pass within send gradients to the other ranks only if it is the last.

        Until then each rank that has a part of the parameters keeps all of them, besides a whole gradient,
        which spares the next forward pass to gather them. With `sums_once` false it keeps neither.
        """
        if isinstance(self.trained, FSDPModule):
            is_sent = is_last or not self.sums_once
            cast(FSDPModule, self.trained).set_requires_gradient_sync(is_sent)
            cast(FSDPModule, self.trained).set_reshard_after_backward(is_sent)
        with contextlib.ExitStack() as stack:
            if is_last:
                self.sums.give_back()
            else:
                stack.enter_context(self.sums.adding(self.policy.parameters()))
                if isinstance(self.trained, DistributedDataParallel):
                    stack.enter_context(self.trained.no_sync())
            yield


def alone(policy: PolicyModel) -> SharedPolicy:
    """A policy that one process trains."""
    return SharedPolicy(policy, policy, ALONE)


def distribute(
    policy: PolicyModel, ranks: Ranks, *, parallel: ParallelConfig, devices: DeviceManager
) -> SharedPolicy:
    """Distributes a policy, which every rank holds whole with the same parameters, over the ranks.

    One whose parameters are divided already stays as it is.

    Raises ConfigError where the processes do not stand on machines as `parallel.shard` supposes.
    """
    if isinstance(policy, FSDPModule):
        return SharedPolicy(policy, policy, ranks, sums_once=parallel.sum_gradients == "step")
    for tensor in (*policy.parameters(), *policy.buffers()):
        tensor.data = aligned(tensor.data)
    if ranks.world_size == 1:
        return alone(policy)
    if parallel.shard is None:
        return SharedPolicy(policy, _replicated(policy, devices), ranks)
    shard(policy, ranks, parallel, devices)
    return SharedPolicy(policy, policy, ranks, sums_once=parallel.sum_gradients == "step")


def shard(policy: PolicyModel, ranks: Ranks, parallel: ParallelConfig, devices: DeviceManager) -> None:
    """Divides the parameters among the ranks, in place; their values may be missing (device `meta`)."""
    kind = devices.device.type
    if parallel.shard == "node" and _spans_machines(ranks, parallel):
        shape = (ranks.world_size // ranks.local_world_size, ranks.local_world_size)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("shard",))
    computes_narrow = devices.compute_dtype != torch.float32
    precision = MixedPrecisionPolicy(
        param_dtype=devices.compute_dtype if computes_narrow else None,
        reduce_dtype=torch.float32 if computes_narrow else None,
        cast_forward_inputs=False,
    )
    for layer in policy.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    # Left to itself, FSDP2 gathers ahead by what it has seen since the last backward pass, evaluations
    # included. In these, ranks may generate different numbers of tokens, and would then wait for ever.
    modules = cast(list[FSDPModule], [policy, *reversed(policy.layers)])
    for module, following in zip(modules, [*modules[1:], policy], strict=True):
        module.set_modules_to_backward_prefetch([cast(FSDPModule, following)])


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all of one that the ranks share; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def whole_parameters(policy: PolicyModel) -> Iterator[None]:
    """Within it, every rank holds all parameters, so that ranks may compute different things."""
    shards = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(module is not policy, recurse=False)
            module.reshard()


def _replicated(policy: PolicyModel, devices: DeviceManager) -> DistributedDataParallel:
    """Buffers are not sent around: every rank computes them alike. (torch renamed the option in 2.13.)"""
    options = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    keep_buffers: dict[str, Any] = {name: False}
    replicated = DistributedDataParallel(
        policy,
        gradient_as_bucket_view=True,
        find_unused_parameters=not _reaches_all(policy, devices),
        **keep_buffers,
    )
    if devices.parameter_dtype != torch.float32:
        replicated.register_comm_hook(None, _mean_in_float32)
    return replicated


def _mean_in_float32(
    _: object,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage] - torch asks for this annotation
) -> torch.futures.Future[torch.Tensor]:
    """The mean over ranks of gradients narrower than float32, rounded once."""
    wide = bucket.buffer().float()
    work = dist.all_reduce(wide, async_op=True)
    assert work is not None, "it was asked for as asynchronous work"

    def rounded(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        return bucket.buffer().copy_(future.value()[0] / dist.get_world_size())

    return work.get_future().then(rounded)


def _reaches_all(policy: PolicyModel, devices: DeviceManager) -> bool:
    """Whether the loss depends on every trained parameter, even that of a row without documents."""
    nothing = collate([()], cast(DocumentSource, None))
    with devices.autocast():
        loss_sum = policy(nothing.to(devices.device))
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return all(gradient is not None for gradient in torch.autograd.grad(loss_sum, trained, allow_unused=True))


def _spans_machines(ranks: Ranks, parallel: ParallelConfig) -> bool:
    """Whether there are several machines, all with equally many processes, numbered machine by machine."""
    sizes = sorted({int(text) for text in ranks.texts(str(ranks.local_world_size))})
    if len(sizes) > 1:
        fact = f"the machines have different numbers of processes: {', '.join(map(str, sizes))}"
        raise ConfigError(problem("parallel.shard", fact, "start equally many on each, or write shard: all"))
    if sizes[0] == ranks.world_size:
        return False
    if ranks.highest(int(ranks.rank % sizes[0] != ranks.local_rank)):
        fact = "the ranks of a machine do not follow one another"
        raise ConfigError(problem("parallel.shard", fact, "start them with torchrun, or write shard: all"))
    if parallel.replicate is None:
        fact = f"node: the processes stand on {ranks.world_size // sizes[0]} machines"
        remedy = "write replicate: across to give each a whole set, or shard: all"
        raise ConfigError(problem("parallel.shard", fact, remedy))
    return True
