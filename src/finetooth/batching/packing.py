"""Packing: the documents of one step → balanced rows, dealt to the ranks.

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
    """Lays the documents of a step into rows and deals the rows to the ranks.

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
    costs = document_costs(lengths[order])
    if layout.packing:
        rows = _pack(lengths[order], costs, row_tokens=layout.row_tokens, world_size=world_size)
    else:
        rows = [[place] for place in range(len(order))]
        rows += [[] for _ in range(-len(rows) % world_size)] or (
            [] if rows else [[] for _ in range(world_size)]
        )
    priced = sorted((-int(costs[row].sum()), row) for row in rows)
    sorted_documents = documents[order].tolist()
    dealt = _deal([-cost for cost, _ in priced], world_size)
    return [
        [tuple(sorted_documents[place] for place in priced[number][1]) for number in rank] for rank in dealt
    ]


def document_costs(lengths: np.ndarray) -> np.ndarray:
    """What documents cost, in the time of one token without attention: int64 [S].

    >>> document_costs(np.array([100, 4096, 32768])).tolist()
    [100, 4608, 65536]
    """
    return lengths + lengths * lengths // TOKENS_OF_DOUBLE_COST


def forward_passes(rows: list[Row], rows_at_once: int) -> list[list[Row]]:
    """Groups a rank's rows into forward passes of at most `rows_at_once` rows."""
    return [rows[start : start + rows_at_once] for start in range(0, len(rows), rows_at_once)]


def _pack(lengths: np.ndarray, costs: np.ndarray, *, row_tokens: int, world_size: int) -> list[list[int]]:
    """Packs documents (longest first) into few rows, a multiple of world_size, that hold them."""
    num_rows = max(1, -(-int(lengths.sum()) // (row_tokens * world_size))) * world_size
    while (rows := _balance(lengths, costs, num_rows, row_tokens)) is None:
        num_rows += world_size
    return rows


def _balance(
    lengths: np.ndarray, costs: np.ndarray, num_rows: int, row_tokens: int
) -> list[list[int]] | None:
    """Puts each document, longest first, into the cheapest row that holds it (Graham 1969, LPT), if any."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    room = [row_tokens] * num_rows
    loads = [(0, row) for row in range(num_rows)]
    for place, (length, cost) in enumerate(zip(lengths.tolist(), costs.tolist(), strict=True)):
        full: list[tuple[int, int]] = []
        while loads and room[loads[0][1]] < length:
            full.append(heapq.heappop(loads))
        if not loads:
            return None
        load, row = loads[0]
        heapq.heapreplace(loads, (load + cost, row))
        rows[row].append(place)
        room[row] -= length
        for passed in full:
            heapq.heappush(loads, passed)
    return rows


def _deal(costs: list[int], world_size: int) -> list[list[int]]:
    """Deals rows, costliest first: each to the rank with least so far, among those that lack a row."""
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for row, cost in enumerate(costs):
        load, rank = heapq.heappop(loads)
        ranks[rank].append(row)
        if len(ranks[rank]) < len(costs) // world_size:
            heapq.heappush(loads, (load + cost, rank))
    return ranks
