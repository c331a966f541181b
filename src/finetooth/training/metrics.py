"""metrics.jsonl: one JSON object per line, the truth about a run.

    {"step": 3, "epoch": 0.06, "loss": 2.31, "learning_rate": 2e-05, "grad_norm": 0.8, "num_documents": 8,
     "num_targets": 412, "num_tokens": 1630, "seconds": 0.41, "time": 1790000000.123,
     "peak_memory_mb": 812.5}
    {"step": 200, "train_loss": 1.1, "train_perplexity": 3.0, "dev_loss": 1.2, "dev_perplexity": 3.3}

`step` counts finished updates from 1; `epoch` is how often the documents have been passed so far; `seconds`
is what the update took, and `time` when it was done, in seconds since 1970.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetooth.base.files import told_plainly, write_atomically
from finetooth.evaluation.run_files import MetricsLine, each_object


class Reached(NamedTuple):
    """The last step whose update, and the last one whose evaluation, has a line; −1 where none has."""

    updates: int = -1
    evaluations: int = -1


class MetricsLog:
    """Appends lines to metrics.jsonl; a line reaches the file before `append` returns.

    is_written: false on the ranks of a run that leave writing to another one.
    """

    def __init__(self, path: Path, *, is_written: bool = True):
        self.path = path
        self.is_written = is_written
        if is_written:
            path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, line: dict[str, Any]) -> None:
        """Writes one line."""
        if not self.is_written:
            return
        with told_plainly(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        """Returns when every line is on the disk, as a checkpoint that knows of them needs it."""
        if self.is_written and self.path.exists():
            with told_plainly(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """Every complete line; one that was cut off while being written is left out."""
        return list(self.each_line())

    def each_line(self) -> Iterator[dict[str, Any]]:
        """The same one by one, as a long run has very many.

        Raises FinetoothError for a line that no run writes.
        """
        if self.is_written:
            yield from each_object(self.path, MetricsLine)

    def forget_after(self, step: int, *, evaluated: int | None = None) -> Reached:
        """Removes the lines of later steps, which a resumed run will do again; returns how far it went.

        evaluated: the last step whose evaluation counts; evaluations of later ones are removed, too
        """
        reached = Reached()
        last = step if evaluated is None else min(step, evaluated)
        kept: list[str] = []
        for line in self.each_line():
            if is_evaluation(line):
                reached = reached._replace(evaluations=line["step"])
            elif "loss" in line:
                reached = reached._replace(updates=line["step"])
            if line["step"] <= (last if is_evaluation(line) else step):
                kept.append(json.dumps(line) + "\n")
        if self.is_written:
            write_atomically(self.path, "".join(kept).encode())
        return reached


def is_evaluation(line: Mapping[str, Any]) -> bool:
    """Whether an evaluation has written the line."""
    return "train_loss" in line
