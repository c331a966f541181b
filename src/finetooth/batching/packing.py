"""Packing: the documents of one step → balanced rows, dealt to the ranks.

A row is several documents laid end to end for one forward pass. Rows are a layout: how documents are
laid out never changes what is learnt.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from finetooth.config.schema import TrainingConfig

Row = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the documents of a step are laid out for the device; changes nothing that is learnt.

    packing:      several documents in a row; without it, every document has its own row.
    row_tokens:   most tokens in a packed row; no document is longer.
    rows_at_once: rows in one forward pass.
    """

    packing: bool
    row_tokens: int
    rows_at_once: int = 1


def layout_of(training: TrainingConfig, *, can_pack: bool = True) -> Layout:
    """How the settings lay documents out, for a model whose documents can share a row or cannot."""
    return Layout(
        packing=training.packing is not False and can_pack,
        row_tokens=training.row_tokens,
        rows_at_once=training.rows_at_once,
    )


def lay_out(
    documents: np.ndarray, lengths: np.ndarray, *, layout: Layout, world_size: int = 1
) -> list[list[Row]]:
    """Lays the documents of a step into rows and deals the rows to the ranks.

    documents: int64 [S], the documents of the step; lengths: int64 [S], their tokens.
    Returns one list of rows per rank. Every rank has the same number of rows (some may be empty) and
    about the same number of tokens; every document stands in exactly one row; longest rows come first.

    >>> layout = Layout(packing=True, row_tokens=8)
    >>> lay_out(np.array([10, 11, 12, 13]), np.array([5, 3, 2, 6]), layout=layout)
    [[(13, 12), (10, 11)]]
    """
    assert len(documents) == 0 or lengths.max() <= layout.row_tokens or not layout.packing, (
        "a document exceeds a row"
    )
    order = np.lexsort((documents, -lengths))
    if layout.packing:
        rows = _pack(lengths[order], row_tokens=layout.row_tokens, world_size=world_size)
    else:
        rows = [[place] for place in range(len(order))]
        rows += [[] for _ in range(-len(rows) % world_size)] or (
            [] if rows else [[] for _ in range(world_size)]
        )
    sorted_documents, sorted_lengths = documents[order].tolist(), lengths[order]
    rows.sort(key=lambda row: (-int(sorted_lengths[row].sum()), row))
    return _deal([tuple(sorted_documents[place] for place in row) for row in rows], world_size)


def forward_passes(rows: list[Row], rows_at_once: int) -> list[list[Row]]:
    """Groups a rank's rows into forward passes of at most `rows_at_once` rows."""
    return [rows[start : start + rows_at_once] for start in range(0, len(rows), rows_at_once)]


def _pack(lengths: np.ndarray, *, row_tokens: int, world_size: int) -> list[list[int]]:
    """Packs documents (longest first) into the fewest rows, a multiple of world_size, that hold them."""
    num_rows = max(1, -(-int(lengths.sum()) // (row_tokens * world_size))) * world_size
    while True:
        rows, longest = _balance(lengths, num_rows)
        if longest <= row_tokens:
            return rows
        num_rows += world_size


def _balance(lengths: np.ndarray, num_rows: int) -> tuple[list[list[int]], int]:
    """Puts each document, longest first, into the row with the fewest tokens (Graham 1969, LPT)."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    loads = [(0, row) for row in range(num_rows)]
    for place, length in enumerate(lengths.tolist()):
        load, row = loads[0]
        rows[row].append(place)
        heapq.heapreplace(loads, (load + length, row))
    return rows, max(load for load, _ in loads)


def _deal(rows: list[Row], world_size: int) -> list[list[Row]]:
    """Deals rows, longest first, to the ranks back and forth, so that no rank always gets the longer one."""
    ranks: list[list[Row]] = [[] for _ in range(world_size)]
    for start in range(0, len(rows), world_size):
        turn = range(world_size) if (start // world_size) % 2 == 0 else range(world_size - 1, -1, -1)
        for rank, row in zip(turn, rows[start : start + world_size], strict=True):
            ranks[rank].append(row)
    return ranks
