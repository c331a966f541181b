"""How the ranks of a run share the policy: each holds all of it (DDP), or a part of it (FSDP2).

Each rank computes the gradient of its own rows; gradients are added up once per step. DDP and FSDP2 give the
mean over ranks, so the loss is multiplied by their number, which leaves the sum.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from finetooth.batching.collate import Batch
from finetooth.config.schema import ParallelConfig
from finetooth.model.policy import PolicyModel


@dataclass(frozen=True, slots=True)
class SharedPolicy:
    """A policy as one rank sees it; `trained` is what the forward pass of training goes through."""

    policy: PolicyModel
    trained: nn.Module
    ranks: Ranks
    sums_once: bool = True

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
        """The forward and backward pass within send gradients to the other ranks only if it is the last."""
        if isinstance(self.trained, FSDPModule):
            cast(FSDPModule, self.trained).set_requires_gradient_sync(is_last)
        if isinstance(self.trained, DistributedDataParallel) and not is_last:
            with self.trained.no_sync():
                yield
        else:
            yield


def alone(policy: PolicyModel) -> SharedPolicy:
    """A policy that one process trains."""
    return SharedPolicy(policy, policy, ALONE)


def distribute(
    policy: PolicyModel, ranks: Ranks, *, parallel: ParallelConfig, devices: DeviceManager
) -> SharedPolicy:
    """Distributes a policy, which every rank holds with the same parameters, over the ranks."""
    if ranks.world_size == 1:
        return alone(policy)
    if parallel.shard is None:
        return SharedPolicy(policy, _replicated(policy), ranks)
    _shard(policy, ranks, parallel, devices)
    return SharedPolicy(policy, policy, ranks)


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


def _replicated(policy: PolicyModel) -> DistributedDataParallel:
    """Buffers are not sent around: every rank computes them alike. (torch renamed the option in 2.13.)"""
    options = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    keep_buffers: dict[str, Any] = {name: False}
    return DistributedDataParallel(policy, gradient_as_bucket_view=True, **keep_buffers)


def _shard(policy: PolicyModel, ranks: Ranks, parallel: ParallelConfig, devices: DeviceManager) -> None:
    kind = devices.device.type
    if parallel.shard == "node" and ranks.local_world_size < ranks.world_size:
        shape = (ranks.world_size // ranks.local_world_size, ranks.local_world_size)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))
    else:
        mesh = init_device_mesh(kind, (dist.get_world_size(),), mesh_dim_names=("shard",))
    narrow = None if devices.precision == "fp32" else devices.compute_dtype
    precision = MixedPrecisionPolicy(
        param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None, cast_forward_inputs=False
    )
    for layer in _layers(policy):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)


def _layers(policy: PolicyModel) -> list[nn.Module]:
    """The layers of the backbone: the members of its longest module list."""
    lists = [module for module in policy.model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len))
