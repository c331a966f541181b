"""One, two and four ranks train the same, replicated or sharded, also where a rank has no target."""

from dataclasses import replace

import pytest
from tests.equivalence.course import Case, assert_same, follow, follow_all
from tests.ranks import on_ranks

from finetooth.batching.packing import Layout
from finetooth.config.schema import ParallelConfig

PADDED, PACKED = Layout(packing=False, row_tokens=64, rows_at_once=2), Layout(packing=True, row_tokens=48)
SHARDED = ParallelConfig(shard="all")
CASES = {
    "replicated, padded": Case(PADDED),
    "replicated, packed, 50 steps": Case(PACKED, num_steps=50),
    "replicated, fp64": Case(PACKED, wide=True),
    "sharded, padded": Case(PADDED, parallel=SHARDED),
    "sharded, packed, 50 steps": Case(PACKED, num_steps=50, parallel=SHARDED),
    "sharded, fp64": Case(PACKED, wide=True, parallel=SHARDED),
    "a rank without documents": Case(PADDED, batch=3, num_steps=4),
    "a rank without documents, sharded": Case(PADDED, batch=3, num_steps=4, parallel=SHARDED),
    "a rank without targets": Case(PACKED, batch=4, num_steps=6, targetless=(0, 2, 3, 5, 8, 9, 13)),
    "a rank without targets, sharded": Case(
        PACKED, batch=4, num_steps=6, targetless=(0, 2, 3, 5, 8, 9, 13), parallel=SHARDED
    ),
    "dropout": Case(PACKED, num_steps=3, dropout=0.2),
    "dropout, sharded": Case(PADDED, num_steps=3, dropout=0.2, parallel=SHARDED),
    "steps without targets": Case(PADDED, num_steps=2, targetless=tuple(range(24))),
    "the usual mistake": Case(PADDED, mean_of_means=True),
}


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_world_size_trains_the_same(world_size: int):
    ranks = on_ranks(follow_all, list(CASES.values()), world_size=world_size)
    for (name, case), *courses in zip(CASES.items(), *ranks, strict=True):
        expected = follow(replace(case, mean_of_means=False))
        try:
            assert_same(courses, expected, wide=case.wide)
        except AssertionError:
            assert case.mean_of_means, name
        else:
            assert not case.mean_of_means, "a mean of means was not noticed"
