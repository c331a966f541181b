"""AdamW decays matrices only; the learning rate follows its stated course."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.documents import small_policy

from finetooth.training.optimizer import create_optimizer, lr_at, num_warmup_steps


def test_only_matrices_decay():
    policy = small_policy(attention_bias=True)
    optimizer = create_optimizer(policy, learning_rate=1e-3, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(policy.model.named_parameters())
    assert len(decay) == len(names)
    assert {name for name, p in names.items() if decay[id(p)] == 0.0} == {
        name for name in names if "norm" in name or name.endswith("bias")
    }
    assert all(decay[id(p)] == 0.1 for name, p in names.items() if name.endswith("proj.weight"))


def test_frozen_parameters_are_left_out():
    policy = small_policy()
    policy.model.get_input_embeddings().requires_grad_(False)
    optimizer = create_optimizer(policy, learning_rate=1e-3)
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    assert trained == len(list(policy.parameters())) - 1


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
def test_states_on_the_host_give_the_same_bits(max_norm: float):
    trained: list[dict[str, torch.Tensor]] = []
    for offload in (False, True):
        policy = small_policy()
        optimizer = create_optimizer(policy, learning_rate=1e-2, weight_decay=0.1, offload=offload)
        for step in range(5):
            for parameter in policy.parameters():
                parameter.grad = torch.cos(parameter.detach() * (step + 2))
            torch.nn.utils.clip_grads_with_norm_(policy.parameters(), max_norm, torch.tensor(1.0))
            optimizer.step()
        states = {f"{n}.{key}": t for n, s in enumerate(optimizer.state.values()) for key, t in s.items()}
        assert all(state.device.type == "cpu" for state in states.values())
        trained.append({**policy.state_dict(), **states})
    plain, offloaded = trained
    assert plain.keys() == offloaded.keys()
    assert all(torch.equal(plain[name], offloaded[name]) for name in plain)


def test_an_update_equals_adamw_written_out():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = create_optimizer(layer, learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9), epsilon=1e-3)
    expected = {name: p.detach().double().clone() for name, p in layer.named_parameters()}
    means = {name: torch.zeros_like(p) for name, p in expected.items()}
    squares = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in (1, 2, 3):
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).pow(2).sum().backward()
        for name, parameter in layer.named_parameters():
            gradient = parameter.grad.double()
            expected[name] *= 1 - 0.1 * (0.5 if name == "weight" else 0.0)
            means[name] = 0.8 * means[name] + 0.2 * gradient
            squares[name] = 0.9 * squares[name] + 0.1 * gradient**2
            corrected = (squares[name] / (1 - 0.9**step)).sqrt() + 1e-3
            expected[name] -= 0.1 * means[name] / (1 - 0.8**step) / corrected
        optimizer.step()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


@given(st.integers(1, 500), st.integers(0, 100), st.sampled_from(["cosine", "linear", "constant"]))
def test_the_rate_rises_then_never_rises_again(num_steps: int, warmup_steps: int, course: str):
    rates = [
        lr_at(step, num_steps=num_steps, learning_rate=1.0, min_learning_rate=0.1, warmup_steps=warmup_steps,
              lr_scheduler_type=course)  # type: ignore[arg-type]
        for step in range(1, num_steps + 1)
    ]  # fmt: skip
    peak = min(max(1, warmup_steps), num_steps)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak - 1 :] == sorted(rates[peak - 1 :], reverse=True)
    assert min(rates) > 0
    assert max(rates) <= 1.0


@pytest.mark.parametrize("course", ["cosine", "linear"])
def test_the_last_step_has_the_lowest_rate(course: str):
    options = {"num_steps": 50, "learning_rate": 3e-4, "min_learning_rate": 3e-5, "lr_scheduler_type": course}
    assert lr_at(50, warmup_steps=5, **options) == pytest.approx(3e-5)  # type: ignore[arg-type]
    assert lr_at(5, warmup_steps=5, **options) == 3e-4  # type: ignore[arg-type]


def test_cosine_is_halfway_down_in_the_middle():
    assert lr_at(6, num_steps=11, learning_rate=1.0, min_learning_rate=0.2) == pytest.approx(0.6)


def test_a_share_of_warmup_is_rounded_up():
    assert [num_warmup_steps(share, 101) for share in (0, 0.05, 7)] == [0, math.ceil(5.05), 7]
