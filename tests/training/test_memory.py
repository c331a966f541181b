"""A run that memory does not hold says so before its first step, and names, or takes, rows that fit."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.documents import Documents, random_documents, small_policy
from tests.ranks import on_ranks
from tests.training.test_trainer import losses, make_config

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.errors import DeviceMemoryError, ToldElsewhere
from finetooth.batching import largest as largest_module
from finetooth.batching.collate import Batch
from finetooth.batching.largest import LOOKED_AT_DOCUMENTS, LOOKED_AT_STEPS, largest_pass
from finetooth.batching.order import epoch_order
from finetooth.batching.packing import Layout, lay_out
from finetooth.batching.schedule import Schedule, schedule_of
from finetooth.model.policy import PolicyModel
from finetooth.model.recompute import LADDER, Recompute
from finetooth.model.shape import shape_of_fields
from finetooth.training import memory, updates
from finetooth.training.memory import is_ample, smaller, telling_what_loads
from finetooth.training.trainer import SFTTrainer, TrainResult

ROOM = 60


@pytest.fixture(autouse=True)
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs here could not do without the rehearsal, as far as it knows."""
    monkeypatch.setattr(memory, "_AMPLE", math.inf)


def policy_with_room_for(num_tokens: int, *, after: int = 0) -> PolicyModel:
    """A policy that runs out of memory above so many tokens, `after` so many forward passes."""
    policy, passes = small_policy(), 0

    def refuse(module: torch.nn.Module, inputs: tuple[Batch, ...]) -> None:
        nonlocal passes
        passes += 1
        if torch.is_grad_enabled() and passes > after and inputs[0].token_ids_BT.numel() > num_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore lines")

    policy.register_forward_pre_hook(refuse)
    return policy


def train(
    folder: Path, documents: Documents, policy: PolicyModel, *, auto_fit: bool = False, **training: Any
) -> TrainResult:
    config = make_config(folder, row_tokens=200, global_batch_size=6, **training)
    return SFTTrainer(config, policy=policy, train=documents, auto_fit=auto_fit).train()


def test_the_largest_pass_is_that_of_the_run():
    documents = random_documents(40)
    config = make_config(Path("unused"), global_batch_size=5, num_train_epochs=3).training
    schedule = schedule_of(config, documents)
    for layout in (Layout(True, 100), Layout(True, 64, 2), Layout(False, 64, 3)):
        for world_size in (1, 2):
            largest = largest_pass(schedule, layout, world_size=world_size)
            everywhere = [
                len(group) * max(int(documents.lengths[list(row)].sum()) for row in group)
                for step in schedule.steps()
                for rows in lay_out(
                    step.documents,
                    documents.lengths[step.documents],
                    layout=layout,
                    world_size=world_size,
                )
                for start in range(0, len(rows), layout.rows_at_once)
                if (group := rows[start : start + layout.rows_at_once])
            ]
            assert largest.num_tokens == max(everywhere)


def uneven_lengths(num_documents: int, longer: dict[int, int]) -> np.ndarray:
    """Documents of fewer than 50 tokens, except those that are named with their tokens."""
    lengths = np.random.default_rng(1).integers(2, 50, num_documents)
    lengths[list(longer)] = list(longer.values())
    return lengths


def long_schedule(lengths: np.ndarray, **settings: Any) -> Schedule:
    return Schedule(
        lengths, lengths.astype(float), lengths, **{"seed": 7, "global_batch_size": 2, **settings}
    )


LATE_LAYOUTS = [Layout(packing=True, row_tokens=200), Layout(packing=False, row_tokens=200, rows_at_once=2)]


@pytest.mark.parametrize("layout", LATE_LAYOUTS, ids=["packed", "padded"])
@pytest.mark.parametrize("settings", [{}, {"global_batch_tokens": 60}], ids=["documents", "tokens"])
def test_a_largest_pass_late_in_the_run_is_found(layout: Layout, settings: dict[str, Any]):
    late = int(epoch_order(9000, seed=7, epoch=0)[8000])
    schedule = long_schedule(uneven_lengths(9000, {late: 150}), **settings)
    largest = largest_pass(schedule, layout)
    assert largest.step == schedule.steps_of(np.array([late]), epoch=0)[0] > 3 * LOOKED_AT_STEPS
    assert any(late in row for row in largest.rows)
    assert largest.num_tokens >= 150


def test_on_resume_the_largest_pass_is_one_that_is_still_to_come():
    """The longest document has been trained; it comes again in the next epoch, if there is one."""
    order = epoch_order(9000, seed=7, epoch=0)
    lengths = uneven_lengths(9000, {order[100]: 150, order[8000]: 120})
    layout = Layout(packing=False, row_tokens=200)
    once, twice = long_schedule(lengths), long_schedule(lengths, num_epochs=2)
    assert largest_pass(once, layout, first=1000).num_tokens == 120
    again = largest_pass(twice, layout, first=1000)
    assert (again.num_tokens, twice.step(again.step).epoch) == (150, 1)


@pytest.mark.parametrize(
    ("num_documents", "settings"),
    [
        (3_000_000, {"num_epochs": 3, "global_batch_size": 4096}),
        (3_000_000, {"num_epochs": 3, "global_batch_size": 500_000}),
        (50_000, {"num_epochs": 20, "global_batch_size": 128}),
        (10, {"max_steps": 100_000}),
    ],
    ids=str,
)
def test_looking_for_the_largest_pass_costs_the_same_however_long_the_run_is(
    monkeypatch: pytest.MonkeyPatch, num_documents: int, settings: dict[str, Any]
):
    laid_out: list[int] = []
    real = largest_module.lay_out

    def counting(documents: np.ndarray, *arguments: Any, **options: Any) -> Any:
        laid_out.append(len(documents))
        return real(documents[:64], arguments[0][:64], **options)  # how many they are is all that counts

    monkeypatch.setattr(largest_module, "lay_out", counting)
    schedule = long_schedule(uneven_lengths(num_documents, {}), **settings)
    largest_pass(schedule, Layout(packing=True, row_tokens=200))
    per_step = -(-num_documents // schedule.steps_per_epoch)
    assert 0 < len(laid_out) <= 2 * LOOKED_AT_STEPS
    assert sum(laid_out) <= 2 * max(LOOKED_AT_DOCUMENTS, per_step)


def test_layouts_shrink_down_to_the_longest_document():
    layout: Layout | None = Layout(packing=True, row_tokens=1000, rows_at_once=3)
    seen = []
    while layout := smaller(layout, longest_document=300):
        seen.append((layout.row_tokens, layout.rows_at_once))
    assert seen == [(1000, 1), (500, 1), (300, 1)]
    assert smaller(Layout(packing=False, row_tokens=1000), longest_document=300) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rehearsal_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str):
    documents = random_documents(15)
    with_it = train(tmp_path / "with", documents, small_policy(), precision=precision)
    before = torch.random.get_rng_state()
    monkeypatch.setattr(updates, "fits", lambda *_, **__: True)
    without = train(tmp_path / "without", documents, small_policy(), precision=precision)
    assert losses(with_it) == losses(without)
    ours, theirs = (result.policy.state_dict() for result in (with_it, without))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_that_do_not_fit_are_told_before_the_first_step_with_some_that_do(tmp_path: Path):
    documents = random_documents(20)
    config = make_config(tmp_path, row_tokens=200, global_batch_size=6).training
    schedule = schedule_of(config, documents)
    largest, *others = (largest_pass(schedule, Layout(True, row_tokens)) for row_tokens in (200, 100, 50))
    fitting = next(
        row_tokens for row_tokens, other in zip((100, 50), others, strict=True) if other.num_tokens <= ROOM
    )
    with pytest.raises(DeviceMemoryError) as caught:
        train(tmp_path, documents, policy_with_room_for(ROOM))
    fact = f"a forward pass of {largest.num_tokens} tokens, as in step {largest.step}, does not fit"
    remedy = f"training.row_tokens: {fitting} was tried and fits; write it, or add --auto-fit"
    assert str(caught.value).partition(": ")[2] == f"{fact}; {remedy}"
    assert caught.value.exit_code == 4
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_a_document_that_never_fits_is_told(tmp_path: Path):
    with pytest.raises(DeviceMemoryError) as caught:
        train(tmp_path, random_documents(20), policy_with_room_for(5), auto_fit=True)
    assert str(caught.value).partition("; ")[2] == (
        "not even the longest document alone fits; lower data.max_length, set parallel.shard, or keep less "
        "per parameter on the device than the 16 bytes of fp32, bf16 and fp16: "
        "training.optimizer: adamw_8bit (10), training.precision: bf16-pure (8 to 10), "
        "parallel.offload_optimizer: true (8), an adapter (about 2)"
    )


@pytest.mark.parametrize(
    ("is_sharded", "remedy"), [(False, "set parallel.shard"), (True, "share them among more devices")]
)
def test_parameters_that_do_not_fit_are_told_with_what_needs_less(is_sharded: bool, remedy: str):
    devices = DeviceManager("cpu", "fp32")
    with pytest.raises(DeviceMemoryError) as caught, telling_what_loads(devices, is_sharded=is_sharded):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    assert str(caught.value).partition(", fp32: ")[2] == (
        f"the parameters do not fit; {remedy}, or keep less of each parameter than the 4 bytes "
        "of float32: training.precision: bf16-pure (2), an adapter (2 with bf16), "
        "adapter.type: qlora (about 0.5)"
    )
    with (
        pytest.raises(RuntimeError, match="another mistake"),
        telling_what_loads(devices, is_sharded=is_sharded),
    ):
        raise RuntimeError("another mistake")


def policy_that_has_to_recompute(needed: Recompute, monkeypatch: pytest.MonkeyPatch) -> PolicyModel:
    """A policy that runs out of memory until it recomputes as much as this."""
    policy = policy_with_room_for(0)
    real, hook = policy.set_recompute, next(iter(policy._forward_pre_hooks.values()))

    def set_recompute(recompute: Recompute, *, compiled: bool) -> None:
        real(recompute)
        is_enough = LADDER.index(recompute) >= LADDER.index(needed)
        policy._forward_pre_hooks.clear()
        if not is_enough:
            policy.register_forward_pre_hook(hook)

    monkeypatch.setattr(policy, "set_recompute", set_recompute)
    return policy


@pytest.mark.parametrize("needed", LADDER)
def test_what_is_recomputed_is_the_least_that_memory_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], needed: Recompute
):
    documents = random_documents(20)
    expected = losses(train(tmp_path / "plenty", documents, small_policy()))
    policy = policy_that_has_to_recompute(needed, monkeypatch)
    config = make_config(tmp_path / "scarce", row_tokens=200, global_batch_size=6)
    result = SFTTrainer(config, policy=policy, train=documents, console=Console(width=200)).train()
    assert losses(result) == expected
    told = f"memory does not hold all that the backward pass needs; goes on with training.recompute: {needed}"
    assert (told in capsys.readouterr().out) == (needed != "nothing")


def test_what_the_settings_name_is_recomputed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = policy_that_has_to_recompute("all", monkeypatch)
    with pytest.raises(DeviceMemoryError, match="as in step"):
        train(tmp_path / "less", random_documents(20), policy, recompute="elementwise")
    train(tmp_path / "all", random_documents(20), policy, recompute="all")


def losses_recomputing(ranks: Ranks, shard: Literal["all"] | None, recompute: Recompute) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder), global_batch_size=6, recompute=recompute, dropout=0.2)
        config = replace(config, parallel=replace(config.parallel, shard=shard))
        trainer = SFTTrainer(config, policy=small_policy(), train=random_documents(20), ranks=ranks)
        return losses(trainer.train())


def recompute_on_ranks(ranks: Ranks) -> list[list[float]]:
    return [
        losses_recomputing(ranks, shard, recompute)
        for shard in (None, "all")
        for recompute in ("nothing", "elementwise", "all")
    ]


@pytest.mark.slow
def test_ranks_that_share_the_policy_or_each_have_all_recompute_to_the_same_bits():
    first, _ = on_ranks(recompute_on_ranks, world_size=2)
    for together, *recomputed in (first[:3], first[3:]):
        assert len(together) > 5
        assert recomputed == [together, together]


def test_auto_fit_trains_the_same_in_shorter_rows(tmp_path: Path):
    documents = random_documents(20)
    expected = train(tmp_path / "roomy", documents, small_policy())
    fitted = train(tmp_path / "fitted", documents, policy_with_room_for(ROOM), auto_fit=True)
    assert losses(fitted) == pytest.approx(losses(expected), rel=1e-6)
    lines = [line for line in fitted.history if "loss" in line]
    assert {line["row_tokens"] for line in lines} in ({100}, {50})


def test_memory_that_runs_out_in_the_middle_shortens_rows_from_that_step_on(tmp_path: Path):
    documents = random_documents(20)
    expected = train(tmp_path / "roomy", documents, small_policy())
    fitted = train(tmp_path / "fitted", documents, policy_with_room_for(ROOM, after=5), auto_fit=True)
    assert losses(fitted) == pytest.approx(losses(expected), rel=1e-6)
    used = [line["row_tokens"] for line in fitted.history if "loss" in line]
    assert used[0] == 200
    assert used[-1] in (100, 50)
    assert used == sorted(used, reverse=True)


def test_without_auto_fit_memory_that_runs_out_in_the_middle_ends_the_run(tmp_path: Path):
    with pytest.raises(DeviceMemoryError) as caught:
        train(tmp_path, random_documents(20), policy_with_room_for(ROOM, after=5))
    assert str(caught.value).startswith("step ")
    assert str(caught.value).endswith(
        ": CUDA out of memory. Tried to allocate 2 GiB.; "
        "lower training.row_tokens or training.rows_at_once, as train --auto-fit does"
    )


def test_another_mistake_in_the_rehearsal_is_not_taken_for_memory(tmp_path: Path):
    """Negative control of what counts as memory."""
    policy = small_policy()

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    policy.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(tmp_path, random_documents(20), policy, auto_fit=True)


def train_where_one_rank_has_less(ranks: Ranks, after: int, auto_fit: bool) -> Any:
    """Rank 1 runs out of memory; the losses, and the rows of each step as rank 0 tells them."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_AMPLE", math.inf)  # a process of its own has no fixtures
        config = make_config(Path(folder), row_tokens=200, global_batch_size=12, num_train_epochs=4)
        config = replace(config, checkpoints=replace(config.checkpoints, every=0))
        policy = policy_with_room_for(70, after=after) if ranks.rank == 1 else small_policy()
        trainer = SFTTrainer(
            config, policy=policy, train=random_documents(30), ranks=ranks, auto_fit=auto_fit
        )
        try:
            trainer.train()
        except (DeviceMemoryError, ToldElsewhere) as error:
            return type(error).__name__, trainer.updates.layout.row_tokens
        if not ranks.is_first:
            return trainer.updates.layout.row_tokens
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        return [(line["loss"], line.get("row_tokens")) for line in lines if "loss" in line]


def train_cases(ranks: Ranks) -> list[Any]:
    cases = [
        train_where_one_rank_has_less(ranks, after, auto_fit)
        for after, auto_fit in ((0, True), (4, True), (0, False))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "host_memory", lambda: (1 << 60, 0 if ranks.rank == 1 else 1 << 60))
        devices, config = DeviceManager("cpu", "fp32"), make_config(Path("unused"))
        return [*cases, is_ample(small_policy(), config, 500, devices=devices, ranks=ranks)]


@pytest.mark.slow
def test_where_one_rank_has_less_memory_all_take_shorter_rows():
    first, second = on_ranks(train_cases, world_size=2)
    alone = train_where_one_rank_has_less(ALONE, 0, True)
    for case in (0, 1):
        assert [loss for loss, _ in first[case]] == pytest.approx([loss for loss, _ in alone], rel=1e-5)
        assert first[case][-1][1] == second[case] < 200
    assert first[1][0][1] == 200, "the middle of the run is meant"
    assert (first[2], second[2]) == (("DeviceMemoryError", 200), ("ToldElsewhere", 200))
    assert (first[3], second[3]) == (False, False), "ample for one is not ample for all"


def settled(folder: Path, **training: Any) -> tuple[int, Recompute]:
    """Forward passes with gradients before the first update, and what is recomputed from there on."""
    policy, passes = small_policy(), 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += torch.is_grad_enabled()

    policy.register_forward_pre_hook(count)
    trainer = SFTTrainer(make_config(folder, **training), policy=policy, train=random_documents(6))
    trainer.updates.settle(first=1)
    return passes, trainer.updates.recompute


def test_nothing_is_rehearsed_where_memory_is_ample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert settled(tmp_path / "scarce") == (1, "nothing")
    monkeypatch.setattr(memory, "_AMPLE", 0)
    assert settled(tmp_path / "ample") == (0, "nothing")
    assert settled(tmp_path / "asked", recompute="elementwise") == (0, "elementwise")


def test_memory_is_ample_from_four_times_the_estimate_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_AMPLE", 4)
    policy, devices = small_policy(), DeviceManager("cpu", "fp32")
    config = make_config(Path("unused"))
    needed = memory.footprint(
        shape_of_fields(policy.model.config.to_dict()),
        config.training,
        config.adapter,
        precision="fp32",
        device_type="cpu",
        pass_tokens=500,
    ).total
    free = 4 * needed

    def told(ranks: Ranks = ALONE) -> bool:
        monkeypatch.setattr(memory, "host_memory", lambda: (1 << 60, free))
        return is_ample(policy, config, 500, devices=devices, ranks=ranks)

    assert told()
    assert not told(replace(ALONE, local_world_size=2)), "two processes of this machine need it twice"
    free -= 1
    assert not told()
    free = 1 << 50
    policy.model.config.attn_logit_softcapping = 50.0
    assert not told(), "scores that are kept are not in the estimate"
    policy.model.config.attn_logit_softcapping = None
    monkeypatch.setattr(type(policy.model.config), "to_dict", lambda _: {"vocab_size": 64})
    assert not told(), "of unknown sizes nothing is estimated"
