"""Runs a function in several processes that can talk over gloo, and returns what each of them returns.

The processes are forked from one server that has loaded torch and transformers once per session, so that a
start costs a fraction of a second. Start few all the same, and let one function go through several cases.
"""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetooth.base.distributed import Ranks

PATIENCE_SECONDS = 120
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["tests.documents", "finetooth.train"])


def on_ranks(
    function: Callable[..., Any], *arguments: Any, world_size: int, num_machines: int = 1
) -> list[Any]:
    """[function(ranks, *arguments) of rank 0, of rank 1, …].

    function: stands in a module, so that its name can be sent. num_machines: as how many the processes pose.
    Raises AssertionError with the traceback of every rank that failed, or that did not end in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            here, there = FORKING.Pipe(duplex=False)
            local = world_size // num_machines
            ranks = Ranks(rank, world_size, rank % local, local)
            process = FORKING.Process(
                target=_run, args=(there, Path(folder, "meet"), ranks, function, arguments), daemon=True
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            return _results(pipes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _results(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[str] = []
    while len(results) < len(pipes) and not failures:
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in results], PATIENCE_SECONDS)
        assert ready, f"no rank answered in {PATIENCE_SECONDS} s; {sorted(results)} had ended"
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                failed, results[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                failed, results[rank] = True, "ended without a word"
            if failed:
                failures.append(f"rank {rank}: {results[rank]}")
    assert not failures, "\n".join(failures)
    return [results[rank] for rank in range(len(pipes))]


def _run(
    pipe: Connection, meeting: Path, ranks: Ranks, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=PATIENCE_SECONDS / 2),
    )
    try:
        said = (False, function(ranks, *arguments))
    except BaseException:  # noqa: BLE001 - whatever it is, the test that waits has to be told
        said = (True, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(said))  # `send` would share the tensors' memory with a process that ends
    dist.destroy_process_group()
