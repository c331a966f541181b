"""The largest forward pass of a run: what its memory has to hold, known before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetooth.batching.packing import Layout, Row, forward_passes, lay_out
from finetooth.batching.schedule import Schedule

# Finding the largest forward pass costs each rank a second or two, however long the run is: so many of the
# next steps are looked at, and so many that hold the longest documents, of about so many documents each time.
LOOKED_AT_STEPS = 1000
LOOKED_AT_DOCUMENTS = 128_000
# Documents whose order is computed to find those steps, in as many epochs.
ORDERED_DOCUMENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class LargestPass:
    """The forward pass that needs most memory: its rows, and its tokens with padding.

    has_others: whether its step has further passes, on whichever rank
    """

    step: int
    rows: list[Row]
    num_tokens: int
    has_others: bool


def largest_pass(schedule: Schedule, layout: Layout, *, first: int = 1, world_size: int = 1) -> LargestPass:
    """The largest forward pass, over all ranks, of the steps from `first` on.

    Without packing, one row at a time, it is the largest of any run of an epoch or more. Else it is the
    largest of up to 1,000 next steps and up to 1,000 that hold the longest documents.
    """
    passes = (
        LargestPass(step.number, rows, _padded_tokens(schedule, rows), len(of_rank) > layout.rows_at_once)
        for step in map(schedule.step, _steps_to_look_at(schedule, first))
        for of_rank in lay_out(
            step.documents, schedule.lengths[step.documents], layout=layout, world_size=world_size
        )
        for rows in forward_passes(of_rank, layout.rows_at_once)
    )
    return max(passes, key=lambda largest: largest.num_tokens)


def _steps_to_look_at(schedule: Schedule, first: int) -> list[int]:
    """The next steps, and the steps from `first` on that hold the longest documents, in ascending order."""
    per_step = -(-schedule.num_documents // schedule.steps_per_epoch)
    most = max(1, min(LOOKED_AT_STEPS, LOOKED_AT_DOCUMENTS // per_step))
    next_steps = range(first, min(first + most, schedule.num_steps + 1))
    last_epoch = (schedule.num_steps - 1) // schedule.steps_per_epoch
    num_epochs = max(2, min(LOOKED_AT_STEPS, ORDERED_DOCUMENTS // schedule.num_documents))
    epoch = (first - 1) // schedule.steps_per_epoch
    epochs = range(epoch, min(epoch + num_epochs, last_epoch + 1))
    longest = _longest_documents(schedule.lengths, LOOKED_AT_STEPS)
    # Of the longest document all epochs come first, then of the next one.
    holding = np.stack([schedule.steps_of(longest, epoch=epoch) for epoch in epochs], axis=1).ravel()
    holding = holding[(holding >= first) & (holding <= schedule.num_steps)]
    return sorted({*next_steps, *list(dict.fromkeys(holding.tolist()))[:most]})


def _longest_documents(lengths: np.ndarray, most: int) -> np.ndarray:
    """The longest documents, longest first; of equally long ones those that come first."""
    threshold = np.partition(lengths, -most)[-most] if len(lengths) > most else 0
    longer = np.flatnonzero(lengths > threshold)
    longest = np.concatenate([longer, np.flatnonzero(lengths == threshold)[: most - len(longer)]])
    return longest[np.argsort(-lengths[longest], kind="stable")]


def _padded_tokens(schedule: Schedule, rows: Sequence[Row]) -> int:
    return len(rows) * max(int(schedule.lengths[list(row)].sum()) for row in rows)
