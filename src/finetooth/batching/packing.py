"""Packing: the documents of one step → ranks of equal cost → balanced rows.

A row is several documents laid end to end for one forward pass. Rows are a layout: how documents are
laid out never changes what is learnt.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from finetooth.config.schema import TrainingConfig

Row = tuple[int, ...]

# In a document of so many tokens, attention costs about as much as all the rest: per token and layer it is
# 2 · length · hidden size against 24 · hidden size², which is 24,576 tokens for 1B models and 49,152 for 8B.
TOKENS_OF_DOUBLE_COST = 32768


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
    """Deals the documents of a step to the ranks and lays them into rows.

    documents: int64 [S], the documents of the step; lengths: int64 [S], their tokens.
    Returns one list of rows per rank. Every rank has the same number of rows (some may be empty) and
    about the same cost; every document stands in exactly one row; costly rows come first.

    >>> layout = Layout(packing=True, row_tokens=8)
    >>> lay_out(np.array([10, 11, 12, 13]), np.array([5, 3, 2, 6]), layout=layout)
    [[(13, 12), (10, 11)]]
    """
    assert len(documents) == 0 or lengths.max() <= layout.row_tokens or not layout.packing, (
        "a document exceeds a row"
    )
    order = np.lexsort((documents, -lengths))
    sizes, costs = lengths[order].tolist(), document_costs(lengths[order]).tolist()
    most = None if layout.packing else max(1, -(-len(order) // world_size))
    ranks = _deal(costs, world_size, most=most)
    if most is None:
        rows = _pack(ranks, sizes, costs, row_tokens=layout.row_tokens)
    else:
        rows = [[[place] for place in rank] + [[]] * (most - len(rank)) for rank in ranks]
    for rank in rows:
        rank.sort(key=lambda row: (-sum(costs[place] for place in row), row))
    numbers = documents[order].tolist()
    return [[tuple(numbers[place] for place in row) for row in rank] for rank in rows]


def document_costs(lengths: np.ndarray) -> np.ndarray:
    """What documents cost, in the time of one token without attention: int64 [S].

    >>> document_costs(np.array([100, 4096, 32768])).tolist()
    [100, 4608, 65536]
    """
    return lengths + lengths * lengths // TOKENS_OF_DOUBLE_COST


def forward_passes(rows: list[Row], rows_at_once: int) -> list[list[Row]]:
    """Groups a rank's rows into forward passes of at most `rows_at_once` rows."""
    return [rows[start : start + rows_at_once] for start in range(0, len(rows), rows_at_once)]


def _deal(costs: list[int], world_size: int, *, most: int | None) -> list[list[int]]:
    """Deals documents, costliest first, each to the rank with least so far (Graham 1969, LPT).

    most: documents that a rank may have.
    """
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for place, cost in enumerate(costs):
        load, rank = heapq.heappop(loads)
        ranks[rank].append(place)
        if most is None or len(ranks[rank]) < most:
            heapq.heappush(loads, (load + cost, rank))
    return ranks


def _pack(
    ranks: list[list[int]], sizes: list[int], costs: list[int], *, row_tokens: int
) -> list[list[list[int]]]:
    """Packs the documents of every rank (longest first) into the fewest rows that hold those of each."""
    num_rows = max(1, *(-(-sum(sizes[place] for place in rank) // row_tokens) for rank in ranks))
    while True:
        packed = [_balance(rank, sizes, costs, num_rows, row_tokens) for rank in ranks]
        rows = [rank for rank in packed if rank is not None]
        if len(rows) == len(ranks):
            return rows
        num_rows += 1


def _balance(
    places: list[int], sizes: list[int], costs: list[int], num_rows: int, row_tokens: int
) -> list[list[int]] | None:
    """Puts each document into the cheapest row that has room for it; None where none has."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    room = [row_tokens] * num_rows
    loads = [(0, row) for row in range(num_rows)]
    for place in places:
        full: list[tuple[int, int]] = []
        while loads and room[loads[0][1]] < sizes[place]:
            full.append(heapq.heappop(loads))
        if not loads:
            return None
        load, row = loads[0]
        heapq.heapreplace(loads, (load + costs[place], row))
        rows[row].append(place)
        room[row] -= sizes[place]
        for passed in full:
            heapq.heappush(loads, passed)
    return rows
