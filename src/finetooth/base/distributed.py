"""The processes of one run: which of them this is, and how they agree.

They are started by `finetooth train --nproc N` or by torchrun; either tells each of them its place in the
environment (RANK, WORLD_SIZE, LOCAL_RANK). Without that, a run is one process and nothing here costs time.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from finetooth.base.errors import ConfigError, FinetoothError, ToldElsewhere, problem

RENDEZVOUS = "FINETOOTH_RENDEZVOUS"  # set by training/launcher.py: a file through which the processes meet


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run.

    rank:             0 … world_size − 1; rank 0 writes files and talks to people
    local_rank:       its place among the processes of this machine
    local_world_size: how many of them there are
    group:            through what they talk; None is what `joined` has opened
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def apart(self) -> "Ranks":
        """The same ranks with a connection of its own for another thread; all ranks must ask."""
        if self.world_size == 1:
            return self
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup), "every rank belongs to the group of all"
        return replace(self, group=group)

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all ranks, in float64; the same bits on every rank."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def highest(self, value: int) -> int:
        """The highest of the ranks' values."""
        if self.world_size == 1:
            return value
        highest = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self.group)
        return int(highest)

    def texts(self, text: str) -> list[str]:
        """What every rank says, by rank."""
        if self.world_size == 1:
            return [text]
        said = text.encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(said)]), group=self.group)
        longest = max(1, *(int(size) for size in sizes))
        mine = torch.frombuffer(bytearray(said.ljust(longest, b"\0")), dtype=torch.uint8)
        everybody = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everybody, mine, group=self.group)
        return [
            bytes(said[: int(size)].tolist()).decode() for said, size in zip(everybody, sizes, strict=True)
        ]

    @contextlib.contextmanager
    def agreeing(self, phase: str) -> Iterator[None]:
        """What is done within succeeds on all ranks or fails on all; rank 0 tells why, once.

        phase: what is being done, for messages: "preparing data".
        """
        failure: FinetoothError | None = None
        try:
            yield
        except FinetoothError as error:
            failure = error
        said = self.texts("" if failure is None else f"{failure.exit_code} {failure}")
        failed = {rank: text for rank, text in enumerate(said) if text}
        if not failed:
            return
        if not self.is_first:
            raise ToldElsewhere(exit_code=int(min(failed.items())[1].partition(" ")[0]))
        if failure is not None:
            raise failure
        raise _failure_elsewhere(failed, phase)


ALONE = Ranks()


def ranks_of_environment() -> Ranks:
    """This process's place, as torchrun or `--nproc` tells it. Raises ConfigError where it tells nonsense."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = [os.environ.get(name) for name in names]
    if given[1] is None:
        return Ranks()
    try:
        rank, world_size, local_rank, local_world_size = (int(text) for text in given if text is not None)
    except ValueError:
        fact = ", ".join(f"{name}={text}" for name, text in zip(names, given, strict=True))
        remedy = "start all processes with torchrun or --nproc, or unset WORLD_SIZE"
        raise ConfigError(problem("environment", fact, remedy)) from None
    return Ranks(rank, world_size, local_rank, local_world_size)


@contextlib.contextmanager
def joined(ranks: Ranks, device: torch.device, *, timeout_seconds: float) -> Iterator[None]:
    """Within it, the ranks can talk; a rank that does not answer in time fails those that wait for it."""
    if ranks.world_size == 1:
        yield
        return
    file = os.environ.get(RENDEZVOUS)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{file}" if file else "env://",
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    try:
        yield
    finally:
        # After a failure the others may be gone; waiting for them would only hide it.
        dist.destroy_process_group()


def _failure_elsewhere(failed: dict[int, str], phase: str) -> FinetoothError:
    exit_code = int(min(failed.items())[1].partition(" ")[0])
    lines = [f"rank {rank}, {phase}: {text.partition(' ')[2]}" for rank, text in sorted(failed.items())]
    error = FinetoothError(lines)
    error.exit_code = exit_code
    return error
