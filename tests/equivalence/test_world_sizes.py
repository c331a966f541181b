"""One, two and four ranks train the same, replicated or sharded, also where a rank has no target."""

from dataclasses import replace

import pytest
import torch
from tests.equivalence.course import Case, assert_same, follow, follow_all
from tests.ranks import on_ranks

from finetooth.base.distributed import Ranks
from finetooth.base.errors import ConfigError
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
    "least memory": Case(PADDED, num_steps=3, parallel=ParallelConfig(shard="all", sum_gradients="pass")),
    "untied": Case(PACKED, num_steps=3, tied=False),
    "untied, sharded": Case(PACKED, num_steps=3, tied=False, parallel=SHARDED),
    "frozen embedding": Case(PADDED, num_steps=3, frozen="embed_tokens"),
    "frozen embedding, sharded": Case(PADDED, num_steps=3, frozen="embed_tokens", parallel=SHARDED),
    "frozen layer, sharded": Case(PADDED, num_steps=3, frozen="layers.0", parallel=SHARDED),
    "extra module": Case(PADDED, num_steps=3, has_extra_module=True),
    "extra module, sharded": Case(PADDED, num_steps=3, has_extra_module=True, parallel=SHARDED),
    "states on the host": Case(
        PADDED, num_steps=3, parallel=ParallelConfig(shard="all", offload_optimizer=True)
    ),
    "steps without targets": Case(PADDED, num_steps=2, targetless=tuple(range(24))),
    "the usual mistake": Case(PADDED, mean_of_means=True),
}


@pytest.mark.slow
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


def test_bf16_throughout_trains_the_same_up_to_rounding():
    """The first loss of all courses is the same to 1e-3; those after it are those of rounded parameters."""
    pure = Case(PADDED, precision="bf16-pure", num_steps=4)
    per_pass = ParallelConfig(shard="all", sum_gradients="pass")
    cases = [pure, replace(pure, parallel=SHARDED), replace(pure, parallel=per_pass)]
    expected = follow(replace(pure, precision="fp32"))
    for courses in ([follow(pure)], *zip(*on_ranks(follow_all, cases, world_size=2), strict=True)):
        for course in courses:
            assert course.losses == pytest.approx(expected.losses, rel=1e-2)
            assert {tensor.dtype for tensor in course.parameters.values()} == {torch.bfloat16}
        assert all(course.losses == courses[0].losses for course in courses)
        for name, tensor in courses[0].parameters.items():
            assert all(torch.equal(course.parameters[name], tensor) for course in courses)


@pytest.mark.slow
def test_fp16_overflows_are_met_in_common_and_uneven_steps_divided_by_their_own_total():
    """24 documents in five steps. Ranks that lowered the loss scale each for itself would part."""
    exact = Case(PACKED, batch=5, num_steps=5)
    expected = follow(exact)
    assert {len(step) for step in expected.documents} == {4, 5}
    cases = [replace(exact, precision="fp16"), replace(exact, precision="fp16", parallel=SHARDED)]
    for courses in ([follow(cases[0])], *zip(*on_ranks(follow_all, cases, world_size=2), strict=True)):
        assert len({course.loss_scale for course in courses}) == 1
        assert courses[0].loss_scale < 2.0**24
        for course in courses:
            assert course.losses == pytest.approx(expected.losses, rel=2e-3)
            for name, tensor in expected.parameters.items():
                assert (course.parameters[name] - tensor).norm() < 1e-2 * tensor.norm(), name


def test_two_machines_hold_a_whole_set_each():
    node = ParallelConfig(shard="node", replicate="across")
    cases = [Case(PADDED, num_steps=4, parallel=node), Case(PACKED, wide=True, parallel=node)]
    ranks = on_ranks(follow_all, cases, world_size=4, num_machines=2)
    for case, *courses in zip(cases, *ranks, strict=True):
        assert_same(courses, follow(case), wide=case.wide)


def test_machines_that_do_not_fit_are_refused_on_every_rank():
    assert (
        on_ranks(refusals, world_size=3)
        == [
            [
                "parallel.shard: the machines have different numbers of processes: 1, 2; "
                "start equally many on each, or write shard: all",
                "parallel.shard: node: the processes stand on 3 machines; "
                "write replicate: across to give each a whole set, or shard: all",
                "parallel.shard: the ranks of a machine do not follow one another; "
                "start them with torchrun, or write shard: all",
            ]
        ]
        * 3
    )


def refusals(ranks: Ranks) -> list[str]:
    """What is said to ranks on machines of 2 and 1, of 1 each, and of 1 each that are numbered wrongly."""
    told: list[str] = []
    uneven = Ranks(ranks.rank, 3, ranks.rank % 2, 2 if ranks.rank < 2 else 1)
    for posing in (uneven, Ranks(ranks.rank, 3, 0, 1), Ranks(ranks.rank, 3, ranks.rank, 1)):
        with pytest.raises(ConfigError) as caught:
            follow(Case(PADDED, parallel=ParallelConfig(shard="node")), posing)
        told.append(str(caught.value))
    return told
