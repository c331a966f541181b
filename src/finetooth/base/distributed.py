"""The processes of one run: which of them this is, and how they agree.

They are started by `finetooth train --nproc N` or by torchrun; either tells each of them its place in the
environment (RANK, WORLD_SIZE, LOCAL_RANK). Without that, a run is one process and nothing here costs time.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from finetooth.base.errors import ConfigError, FinetoothError, NonFiniteError, Stopped, ToldElsewhere, problem

RENDEZVOUS = "FINETOOTH_RENDEZVOUS"  # set by training/launcher.py: a file through which the processes meet
# How long a rank that waited in vain looks for what the others say of it.
_LISTENING_SECONDS = 3.0
_POLL_SECONDS = 0.05
_TRACES_OF_LOST_RANKS = ("gloo", "NCCL", "ProcessGroup", "Connection closed by peer", "Connection reset by")


class RankLostError(FinetoothError):
    """Another rank did not answer: it ended, or hangs."""


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
    def doing(self, phase: str) -> Iterator[None]:
        """What fails within tells where: "step 17, forward".

        Raises RankLostError where another rank is gone.
        """
        try:
            yield
        except FinetoothError as error:
            error.phase = error.phase or phase
            raise
        except RuntimeError as error:
            if self.world_size == 1 or not _is_loss_of_a_rank(error):
                error.add_note(phase)
                raise
            lost = RankLostError(phase)
            lost.phase = phase
            raise lost from error

    @contextlib.contextmanager
    def agreeing(self, phase: str) -> Iterator[None]:
        """What is done within succeeds on all ranks or fails on all; rank 0 tells why, once.

        phase: what is being done, for messages: "preparing data".
        """
        failure: FinetoothError | None = None
        try:
            with self.doing(phase):
                yield
        except (Stopped, RankLostError):
            raise  # at once: the others notice
        except FinetoothError as error:
            failure = error
        with self.doing(phase):
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
def joined(ranks: Ranks, device: torch.device, *, timeout_seconds: float) -> Iterator["Notices"]:
    """Within it, the ranks can talk; a rank that does not answer in time fails those that wait for it.

    A failure within is told once: by rank 0 where it can, with the rank, the step and the phase.
    """
    if ranks.world_size == 1:
        yield Notices(None, ranks)
        return
    file = os.environ.get(RENDEZVOUS)
    timeout = timedelta(seconds=timeout_seconds)
    place = {"rank": ranks.rank, "world_size": ranks.world_size, "timeout": timeout}
    try:
        with ranks.doing("meeting the other processes"):
            store = next(rendezvous(f"file://{file}" if file else "env://", **place))[0]
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, **place)
    except RankLostError:
        fact = f"not all {ranks.world_size} processes came within {timeout_seconds:g} s"
        remedy = "look at their last lines, and check MASTER_ADDR and the network"
        raise RankLostError(problem(f"rank {ranks.rank}", fact, remedy)) from None
    notices = Notices(store, ranks)
    try:
        yield notices
    except BaseException as error:
        explained = notices.explain(error)
        if explained is error:
            raise
        raise explained from None
    finally:
        # After a failure the others may be gone; waiting for them would only hide it.
        dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Notices:
    """What ranks leave behind for one another when they fail: a text each, in a store that outlives them."""

    store: Store | None
    ranks: Ranks

    def leave(self, error: BaseException) -> None:
        """Tells the other ranks why this one ends."""
        if self.store is not None:
            code = getattr(error, "exit_code", 1)
            what = str(error) if isinstance(error, FinetoothError) else f"{type(error).__name__}: {error}"
            self.store.set(f"failed/{self.ranks.rank}", f"{code} {_placed(error, self.ranks, what)}")

    def explain(self, error: BaseException) -> BaseException:
        """The error that this rank ends with: what it met itself, or why another rank left it waiting."""
        if isinstance(error, RankLostError):
            return self._of_lost_ranks(error)
        if isinstance(error, RuntimeError) and _is_loss_of_a_rank(error):
            return self._of_lost_ranks(RankLostError("between two phases"))
        if isinstance(error, ToldElsewhere):
            return error
        if isinstance(error, Stopped) and self.store is not None:
            self.store.set(f"stopped/{self.ranks.rank}", "")
        self.leave(error)
        if self.ranks.is_first or not isinstance(error, FinetoothError):
            return error
        if isinstance(error, NonFiniteError | Stopped):  # every rank meets it, or rank 0 is told
            return ToldElsewhere(exit_code=error.exit_code)
        placed = FinetoothError(_placed(error, self.ranks, str(error)).split("\n"))
        placed.exit_code = error.exit_code
        return placed

    def _of_lost_ranks(self, error: RankLostError) -> FinetoothError:
        """Names the ranks that neither failed with a sentence nor wait for others; one rank tells."""
        assert self.store is not None, "a lone process waits for nobody"
        self.store.set(f"waiting/{self.ranks.rank}", "")
        others = set(range(self.ranks.world_size)) - {self.ranks.rank}
        end = time.monotonic() + _LISTENING_SECONDS
        waiting: set[int] = set()
        while time.monotonic() < end and waiting != others:
            for rank in others:
                if self.store.check([f"failed/{rank}"]):
                    code, _, text = self.store.get(f"failed/{rank}").decode().partition(" ")
                    # A rank other than the first says nothing of its being stopped, lest all of them do.
                    is_untold = self.ranks.is_first and self.store.check([f"stopped/{rank}"])
                    return (Stopped if is_untold else ToldElsewhere)(text.split("\n"), exit_code=int(code))
            waiting = {rank for rank in others if self.store.check([f"waiting/{rank}"])}
            time.sleep(_POLL_SECONDS)
        if any(rank < self.ranks.rank for rank in waiting):
            return ToldElsewhere(exit_code=error.exit_code)
        silent = ", ".join(str(rank) for rank in sorted(others - waiting))
        fact = f"rank {silent} does not answer" if silent else "the connection between the ranks broke"
        remedy = "look at its last lines, and go on with --resume"
        return RankLostError(problem(f"rank {self.ranks.rank}, {error.phase or error}", fact, remedy))


def _placed(error: BaseException, ranks: Ranks, what: str) -> str:
    phase = getattr(error, "phase", None) or ", ".join(getattr(error, "__notes__", ())[:1])
    return f"rank {ranks.rank}, {phase}: {what}" if phase else f"rank {ranks.rank}: {what}"


def _is_loss_of_a_rank(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(trace in str(error) for trace in _TRACES_OF_LOST_RANKS)


def _failure_elsewhere(failed: dict[int, str], phase: str) -> FinetoothError:
    exit_code = int(min(failed.items())[1].partition(" ")[0])
    lines = [f"rank {rank}, {phase}: {text.partition(' ')[2]}" for rank, text in sorted(failed.items())]
    error = FinetoothError(lines)
    error.exit_code = exit_code
    return error
