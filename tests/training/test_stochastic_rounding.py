"""bf16 parameters and states move as float32 ones do, in the mean; ranks round as one process does."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.documents import random_documents, small_policy
from tests.ranks import on_ranks
from tests.training.test_trainer import losses, make_config
from torch import nn

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE, Ranks
from finetooth.config.schema import ParallelConfig
from finetooth.training import stochastic_rounding
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import distribute, whole
from finetooth.training.stochastic_rounding import StochasticAdamW, write_rounded
from finetooth.training.trainer import SFTTrainer

LARGEST = torch.finfo(torch.bfloat16).max
SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), LARGEST, -LARGEST, 2.0**-133, 1.0, -3.5]


def rounded(values: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    narrow = torch.empty_like(values, dtype=torch.bfloat16)
    write_rounded(narrow, values, bits)
    return narrow


def drawn(length: int, *, seed: int = 0) -> torch.Tensor:
    chunks = stochastic_rounding._bits_of_chunks(seed, 0, length, torch.device("cpu"))
    return torch.cat([bits[0] for _, _, bits in chunks])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 65535))
def test_a_value_becomes_one_of_its_two_neighbours(value: float, bits: int):
    narrow = rounded(torch.tensor([value]), torch.tensor([bits], dtype=torch.int32))
    below = rounded(torch.tensor([value]), torch.tensor([0], dtype=torch.int32))  # towards zero
    wide = torch.tensor([value])
    exact = torch.equal(wide.to(torch.bfloat16).float(), wide)
    away = torch.nextafter(below, torch.full_like(wide, float("inf")).copysign(wide).to(torch.bfloat16))
    assert torch.equal(narrow, below) or (not exact and torch.equal(narrow, away))
    assert bool((below.float().abs() <= wide.abs()).all())


@pytest.mark.parametrize("bits", [0, 1, 32768, 65535])
def test_what_bf16_holds_stays_and_so_does_what_is_no_number(bits: int):
    values = torch.tensor(SPECIAL)
    narrow = rounded(values, torch.full((len(values),), bits, dtype=torch.int32))
    assert torch.equal(narrow.float().nan_to_num(7.0), values.nan_to_num(7.0))
    assert torch.equal(narrow.nan_to_num(7.0).signbit(), values.nan_to_num(7.0).signbit())
    assert bool(narrow[4].isnan())


def test_every_kind_of_what_is_no_number_stays_none():
    patterns = [0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000, -0x400000, -0x7FFFFF]
    values = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    assert bool(values.isnan().all())
    assert bool(rounded(values, torch.full((len(values),), 65535, dtype=torch.int32)).isnan().all())


def test_beyond_the_largest_number_is_infinity():
    value = torch.tensor([3.395e38])
    below, above = (rounded(value, torch.tensor([bits], dtype=torch.int32)) for bits in (0, 65535))
    assert float(below) == LARGEST
    assert float(above) == float("inf")


@pytest.mark.parametrize("value", [1.0009, -0.3333, 1e-20, 123.4, 1e-40])
def test_the_mean_of_many_roundings_is_the_value(value: float):
    num_draws = 1 << 20
    values = torch.full((num_draws,), value)
    exact = float(values[0].double())
    narrow = rounded(values, drawn(num_draws)).double()
    lower, upper = float(narrow.min()), float(narrow.max())
    share = (exact - lower) / (upper - lower)
    spread = (upper - lower) * (share * (1 - share) / num_draws) ** 0.5
    assert abs(float(narrow.mean()) - exact) < 5 * spread
    nearest = float(values[0].to(torch.bfloat16).double())
    assert abs(nearest - exact) > 20 * spread  # the control: to nearest is not right in the mean


def test_the_bits_of_the_three_tensors_are_even_and_independent():
    (_, _, bits), *_ = stochastic_rounding._bits_of_chunks(5, 0, 1 << 16, torch.device("cpu"))
    shares = bits.double() / 65536
    assert bool(((shares.mean(dim=1) - 0.5).abs() < 5 * 12**-0.5 / 256).all())
    assert float((torch.corrcoef(shares) - torch.eye(3)).abs().max()) < 5 / 256


@pytest.fixture
def to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(stochastic_rounding, "write_rounded", lambda narrow, values, _: narrow.copy_(values))


def square_after(num_steps: int) -> float:
    """The mean of squares, in the mean over elements, once gradients have become small; it was 1."""
    layer = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    optimizer = create_optimizer(layer, learning_rate=0.0)
    for step in range(num_steps):
        layer.weight.grad = torch.full_like(layer.weight, 0.01)
        if step == 0:
            optimizer.step()
            optimizer.state[layer.weight]["exp_avg_sq"].fill_(1.0)
        optimizer.step()
    return float(optimizer.state[layer.weight]["exp_avg_sq"].float().mean())


def test_a_mean_of_squares_falls_as_it_should():
    assert square_after(300) == pytest.approx(0.999**300, rel=0.01)


@pytest.mark.usefixtures("to_nearest")
def test_rounded_to_nearest_it_stays():
    assert square_after(300) == 1.0


def final_loss(dtype: torch.dtype) -> float:
    """Of a layer that starts at 1 and learns, in small steps, a function with other coefficients."""
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn(256, 16, generator=draws)
    wanted = inputs @ (1 + 0.1 * torch.randn(16, 16, generator=draws))
    layer = nn.Linear(16, 16, bias=False)
    nn.init.ones_(layer.weight)
    layer.to(dtype)
    optimizer = create_optimizer(layer, learning_rate=1e-3, weight_decay=0.0)
    for _ in range(300):
        loss = (layer(inputs.to(dtype)).float() - wanted).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float((inputs @ layer.weight.detach().float().T - wanted).pow(2).mean())


def test_it_learns_what_float32_learns():
    assert final_loss(torch.bfloat16) < final_loss(torch.float32) + 2e-3


@pytest.mark.usefixtures("to_nearest")
def test_rounded_to_nearest_it_stalls():
    assert final_loss(torch.bfloat16) > 0.05


def updated(*, chunk: int = 1 << 16, offload: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(2)
    layer = nn.Linear(37, 11).to(torch.bfloat16)
    optimizer = create_optimizer(layer, learning_rate=1e-2, seed=3, offload=offload)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stochastic_rounding.CHUNK_ELEMENTS, "cpu", chunk)
        for step in range(5):
            for parameter in layer.parameters():
                parameter.grad = torch.cos(parameter.detach() * (step + 2))
            optimizer.step()
    return [*layer.parameters(), *(t for state in optimizer.state.values() for t in state.values())]


@pytest.mark.parametrize("options", [{"chunk": 7}, {"offload": True}])
def test_chunks_and_the_place_of_the_states_decide_nothing(options: dict[str, int]):
    assert all(map(torch.equal, updated(**options), updated()))  # type: ignore[arg-type]


def test_one_step_differs_from_float32_by_less_than_a_unit_in_the_last_place():
    torch.manual_seed(0)
    narrow = nn.Linear(64, 64).to(torch.bfloat16)
    wide = nn.Linear(64, 64)
    wide.load_state_dict({name: p.float() for name, p in narrow.state_dict().items()})
    for layer in (narrow, wide):
        optimizer = create_optimizer(layer, learning_rate=1e-3, weight_decay=0.1)
        for parameter in layer.parameters():
            parameter.grad = torch.cos(parameter.detach().float() * 50).to(torch.bfloat16).to(parameter.dtype)
        optimizer.step()
    for ours, theirs in zip(narrow.parameters(), wide.parameters(), strict=True):
        unit = theirs.abs() * 2**-7
        assert bool(((ours.float() - theirs).abs() < unit).all())
        assert not torch.equal(ours, theirs.to(torch.bfloat16))  # some are not rounded to nearest


def test_all_is_bf16_and_the_seed_decides_the_rounding(tmp_path: Path):
    documents = random_documents(12)
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        config = make_config(tmp_path / str(number), precision="bf16-pure", max_steps=4, seed=1)
        trainer = SFTTrainer(config, policy=small_policy().to(torch.bfloat16), train=documents)
        assert isinstance(trainer.optimizer, StochasticAdamW)
        trainer.optimizer.seed = seed
        runs.append((trainer.train(), trainer))
    (one, trainer), (same, _), (other, _) = runs
    assert losses(one) == losses(same)
    assert losses(one)[1:] != losses(other)[1:]
    assert {p.dtype for p in one.policy.parameters()} == {torch.bfloat16}
    states = {(name, t.dtype) for state in trainer.optimizer.state.values() for name, t in state.items()}
    assert states == {
        ("step", torch.float32),
        ("exp_avg", torch.bfloat16),
        ("exp_avg_sq", torch.bfloat16),
    }


def trained_on_given_gradients(ranks: Ranks, parallel: ParallelConfig | None) -> dict[str, torch.Tensor]:
    """Parameters and states after updates whose gradients do not depend on how the ranks share the policy."""
    policy = small_policy().to(torch.bfloat16)
    if parallel is not None:
        distribute(policy, ranks, parallel=parallel, devices=DeviceManager("cpu", "bf16-pure"))
    optimizer = create_optimizer(policy, learning_rate=1e-2, seed=3)
    for step in range(3):
        for parameter in policy.parameters():
            parameter.grad = torch.cos(parameter.detach() * (step + 20))
        optimizer.step()
    names = {parameter: name for name, parameter in policy.named_parameters()}
    states = {
        f"{key}.{names[parameter]}": tensor
        for parameter, state in optimizer.state.items()
        for key, tensor in state.items()
    }
    return {name: whole(tensor).detach() for name, tensor in (*policy.named_parameters(), *states.items())}


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_are_rounded_as_one_process_rounds(world_size: int):
    expected = trained_on_given_gradients(ALONE, None)
    sharded = ParallelConfig(shard="all")
    for ours in on_ranks(trained_on_given_gradients, sharded, world_size=world_size):
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
