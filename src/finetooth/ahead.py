"""Data is prepared in a process of its own while this one loads its libraries, which takes as long."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def preparing_ahead(run_file: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Within it `finetooth prepare` fills the cache, where whoever needs the data finds it or waits for it.

    What it says is not shown: whoever prepares again after it failed meets the same mistake, and tells it.
    It does nothing on one core, nor beside other ranks. At the end of the block the process is gone.
    """
    is_alone, num_cores = os.environ.get("WORLD_SIZE", "1") == "1", os.cpu_count() or 1
    if not is_alone or num_cores < 2:
        yield
        return
    # the tokenizer's threads would take the core from the libraries, for which the run waits longer
    environment = {"RAYON_NUM_THREADS": str(num_cores - 1), **os.environ}
    command = [sys.executable, "-m", "finetooth", "prepare", str(run_file), *overrides]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()
