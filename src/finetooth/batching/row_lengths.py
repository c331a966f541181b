"""Row lengths: the few lengths to which packed rows are padded where every new shape costs time.

A run's schedule is known before it starts, so they are fitted to the rows that it will have.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from finetooth.batching.packing import Layout, Row, forward_passes, lay_out
from finetooth.batching.schedule import Schedule

# Few row lengths let CUDA reuse its plans; on a CPU every padded token is lost time.
NUM_ROW_LENGTHS = 8
# So many steps are laid out for the fit, spread over the run, of about so many documents in all.
FITTED_STEPS = 128
FITTED_DOCUMENTS = 128_000
_PARTS = 256  # lengths are fitted as multiples of this part of the longest


def row_lengths(schedule: Schedule, layout: Layout, *, device_type: str, world_size: int = 1) -> list[int]:
    """The lengths, ascending, that packed rows of a run have on CUDA; empty where rows are not padded.

    The same on every rank and after a resume.
    """
    if device_type != "cuda" or not layout.packing:
        return []
    fitted = np.fromiter(_lengths_of_passes(schedule, layout, world_size), dtype=np.int64)
    return fit_row_lengths(fitted, longest=layout.row_tokens)


def padded_length(rows: Sequence[Row], lengths: np.ndarray, among: Sequence[int]) -> int:
    """Tokens, with padding, of each row of a forward pass; at least 1.

    lengths: int64, those of all documents; among: the row lengths, ascending.

    >>> lengths = np.array([5, 3, 6])
    >>> padded_length([(0, 1), (2,)], lengths, [6, 12]), padded_length([()], lengths, [])
    (12, 1)
    """
    longest = max(1, *(int(lengths[list(row)].sum()) for row in rows))
    return next((length for length in among if length >= longest), longest)


def num_places(rows: list[Row], lengths: np.ndarray, layout: Layout, among: Sequence[int]) -> int:
    """Tokens that the forward passes of these rows compute, padding included; among: the row lengths.

    >>> num_places([(0, 1), (2,)], np.array([5, 3, 6]), Layout(True, row_tokens=8, rows_at_once=2), [])
    16
    """
    passes = forward_passes(rows, layout.rows_at_once)
    return sum(len(of_pass) * padded_length(of_pass, lengths, among) for of_pass in passes)


def fit_row_lengths(lengths: np.ndarray, *, longest: int, most: int = NUM_ROW_LENGTHS) -> list[int]:
    """At most so many row lengths, the last of them `longest`, that pad rows of these lengths least.

    lengths: int64 [R], of at most `longest` tokens. Found by dynamic programming over them, rounded up to
    256ths of the longest.

    >>> fit_row_lengths(np.array([900, 900, 1000, 4000]), longest=4096, most=3)
    [912, 1008, 4096]
    """
    unit = -(-longest // _PARTS)
    top = -(-longest // unit)
    counts = np.bincount(-(-lengths // unit), minlength=top + 1)
    num_rows, num_units = np.cumsum(counts), np.cumsum(counts * np.arange(top + 1))
    ends = np.arange(top + 1)
    # added[i, j]: units of padding that a length of j units costs if the next shorter one has i units
    added = ends * (num_rows - num_rows[:, None]) - (num_units - num_units[:, None])
    added = np.where(ends > ends[:, None], added, np.inf)
    least, shorter = [added[0]], [np.zeros(top + 1, np.int64)]
    for _ in range(most - 1):
        through = least[-1][:, None] + added
        least.append(through.min(axis=0))
        shorter.append(through.argmin(axis=0))
    num_lengths = int(np.argmin([padding[top] for padding in least])) + 1
    found = [top]
    for best in reversed(shorter[1:num_lengths]):
        found.append(int(best[found[-1]]))
    return [*(units * unit for units in reversed(found[1:])), longest]


def _lengths_of_passes(schedule: Schedule, layout: Layout, world_size: int) -> Iterator[int]:
    per_step = -(-schedule.num_documents // schedule.steps_per_epoch)
    most = max(1, min(FITTED_STEPS, FITTED_DOCUMENTS // per_step, schedule.num_steps))
    for number in np.linspace(1, schedule.num_steps, most).round().astype(np.int64).tolist():
        documents = schedule.step(number).documents
        lengths = schedule.lengths[documents]
        for rows in lay_out(documents, lengths, layout=layout, world_size=world_size):
            for group in forward_passes(rows, layout.rows_at_once):
                yield padded_length(group, schedule.lengths, ())
