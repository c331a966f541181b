"""What a run of finetooth costs as records become more, documents longer, or the model larger."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetooth_arm import run_finetooth
from runs import figures
from work import Record, made_records, make_work

_LENGTHS, _MORE_RECORDS = (64, 128, 256, 512), (1, 4, 16)
_WARM_UP = 1


def scale(
    sizes: Sequence[str],
    folder: Path,
    peak_flops: Mapping[str, float],
    *,
    num_steps: int,
    num_records: int,
    tokens_per_step: int,
    limit: float,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row for each run: what was varied, its value, and the figures.

    sizes: of models; the first one is that of the runs in which something else is varied. Documents of mixed
    lengths stand beside documents that all have the length at which attention costs the same for a token.
    """

    def measure(size: str, records: Sequence[Record], varied: str, value: object) -> None:
        work = make_work(
            folder / "work",
            size,
            records,
            num_steps=num_steps,
            documents_per_step=1,
            max_length=2 * max(map(_num_words, records)) + 64,
            limit=limit,
        )
        run = run_finetooth(work, folder / "arm", limit, global_batch_tokens=tokens_per_step)
        measured = figures(run, work, peak_flops, warm_up=_WARM_UP)
        rows.append({"varied": varied, "value": value, "figures": measured})
        tell(f"{varied} {value}: {measured['useful_tokens_per_second']:,.0f} useful tokens/s")
        for name in ("work", "arm"):
            shutil.rmtree(folder / name)

    rows: list[dict[str, Any]] = []
    mixed = made_records(num_records, median=200, longest=1024)
    for times in _MORE_RECORDS:
        measure(sizes[0], mixed * times, "records", len(mixed) * times)
    for length in _LENGTHS:
        measure(sizes[0], _equal(num_records, length), "words in each document", length)
    measure(sizes[0], mixed, "words in each document", "mixed")
    lengths = list(map(_num_words, mixed))
    alike = round(sum(length**2 for length in lengths) / sum(lengths))
    measure(sizes[0], _equal(num_records, alike), "words in each document", f"{alike} (as mixed)")
    for size in sizes[1:]:
        measure(size, mixed, "model", size)
    return rows


def _equal(num_records: int, length: int) -> list[Record]:
    return made_records(num_records, median=length, spread=0, longest=length)


def _num_words(record: Record) -> int:
    return sum(len(message["content"].split()) for message in record["messages"])
