"""What a run of finetooth costs as records become more, documents longer, or the model larger."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetooth_arm import run_finetooth
from runs import figures, summaries
from work import Record, Work, made_records, make_work, with_records

# Documents have so many words, of which a token is about one, or lengths as in chats: median 200, σ 0.9.
_LENGTHS, _MEDIAN, _LONGEST = (64, 128, 256, 512), 200, 1024
_NUM_RECORDS, _TIMES = 1000, (4, 16)


def scale(
    sizes: Sequence[str],
    folder: Path,
    peak_flops: Mapping[str, float],
    *,
    num_steps: int,
    tokens_per_step: int,
    repeats: int,
    warm_up: int,
    limit: float,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row for each kind of run: what was varied, its value, and median, least and most of the figures.

    sizes: of models; the first one is that of the runs in which something else is varied. Documents of mixed
    lengths stand beside documents that are all so long that attention costs the same for a token.
    """
    cases = [
        (varied, value, work)
        for number, size in enumerate(sizes)
        for varied, value, work in _cases(size, folder / size, num_steps, limit, is_first=number == 0)
    ]
    measured: list[list[dict[str, float | None]]] = [[] for _ in cases]
    for repeat in range(1, repeats + 1):
        for (varied, value, work), done in zip(cases, measured, strict=True):
            run = run_finetooth(work, folder / "arm", limit, global_batch_tokens=tokens_per_step)
            shutil.rmtree(folder / "arm")
            done.append(figures(run, work, peak_flops, warm_up=warm_up))
            rate = done[-1]["useful_tokens_per_second"]
            tell(f"{repeat}/{repeats} {varied} {value}: {rate:,.0f} useful tokens/s")
    return [
        {"varied": varied, "value": value, "figures": summaries(done)}
        for (varied, value, _), done in zip(cases, measured, strict=True)
    ]


def _cases(
    size: str, folder: Path, num_steps: int, limit: float, *, is_first: bool
) -> Iterator[tuple[str, object, Work]]:
    """What is varied, its value, and the work; for sizes but the first, the size alone."""
    mixed = made_records(_NUM_RECORDS, median=_MEDIAN, longest=_LONGEST)
    settings = {"num_steps": num_steps, "documents_per_step": 1, "max_length": 4 * _LONGEST}
    work = make_work(folder, size, mixed, **settings, limit=limit)
    yield "model", size, work  # also 1,000 records, and words that are mixed
    if not is_first:
        return
    for times in _TIMES:
        yield "records", times * _NUM_RECORDS, with_records(work, folder / f"times-{times}", mixed * times)
    for length in _LENGTHS:
        yield "words in each", length, with_records(work, folder / f"words-{length}", _equal(length))
    num_words = [sum(len(message["content"].split()) for message in each["messages"]) for each in mixed]
    alike = round(sum(number**2 for number in num_words) / sum(num_words))
    yield "words in each", f"{alike}, as costly as mixed", with_records(work, folder / "alike", _equal(alike))


def _equal(length: int) -> list[Record]:
    return made_records(_NUM_RECORDS, median=length, spread=0, longest=length)
