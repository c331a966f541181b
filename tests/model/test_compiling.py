"""Compiled layers compute what plain ones do, and are compiled once, whatever the lengths."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.documents import gradients, largest_difference, random_documents, small_policy

from finetooth.base.errors import ConfigError
from finetooth.batching.collate import Batch, collate
from finetooth.model import attention, compiling
from finetooth.model.policy import PolicyModel
from finetooth.model.recompute import Recompute


class Graphs:
    """A backend that computes graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Nothing is compiled to machine code; graphs are still traced and guarded."""
    counting = Graphs()
    monkeypatch.setattr(compiling, "BACKEND", counting)
    _forget_graphs()
    yield counting
    _forget_graphs()


def _forget_graphs() -> None:
    torch.compiler.reset()
    compiling.compiled_forward.cache_clear()


def batches(count: int, **draw: Any) -> list[Batch]:
    """Of different numbers and lengths of documents, in one row or two."""
    documents = random_documents(3 * count, longest=40)
    groups = [range(number, 3 * count, count + 1) for number in range(count)]
    return [
        collate([tuple(group)] * (1 + number % 2), documents, **draw) for number, group in enumerate(groups)
    ]


def losses_and_gradients(
    policy: PolicyModel, given: list[Batch], recompute: Recompute, *, compiled: bool
) -> tuple[list[float], dict[str, torch.Tensor]]:
    policy.zero_grad()
    policy.set_recompute(recompute, compiled=compiled)
    losses: list[float] = []
    for batch in given:
        loss_sum = policy(batch)
        loss_sum.backward()
        losses.append(loss_sum.item())
    return losses, gradients(policy)


def varlen_of_plain_operations(
    query_THD: torch.Tensor,
    key_TKD: torch.Tensor,
    value_TKD: torch.Tensor,
    offsets_S1: torch.Tensor,
    _: torch.Tensor,
    *longest: int,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What the kernel for all documents of a row computes, from operations that a CPU has."""
    places = torch.arange(query_THD.shape[0])
    number = torch.searchsorted(offsets_S1[1:], places, right=True)
    visible = (number[:, None] == number) & (places[:, None] >= places)
    query, key, value = (tensor.transpose(0, 1) for tensor in (query_THD, key_TKD, value_TKD))
    repeats = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(repeats, dim=0), value.repeat_interleave(repeats, dim=0)
    scores = (query @ key.transpose(1, 2) * scale).masked_fill(~visible, -torch.inf)
    return (scores.softmax(dim=-1) @ value).transpose(0, 1)


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is one call for all documents of a row, as on a GPU."""
    monkeypatch.setattr(attention, "takes_varlen", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", varlen_of_plain_operations)


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_plain_layers(graphs: Graphs):
    """With dropout, recomputing, and an attention that reads the documents' lengths between two graphs."""
    policy = small_policy().train()
    policy.set_dropout(0.5)
    given = batches(4, dropout_draw=(7, 1))
    expected_losses, expected = losses_and_gradients(policy, given, "nothing", compiled=False)
    losses_and_gradients(policy, given[:2], "all", compiled=True)
    count = graphs.count
    losses, found = losses_and_gradients(policy, given, "all", compiled=True)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert largest_difference(found, expected) < 1e-6
    assert graphs.count == count > 2, "lengths guard nothing"


@pytest.mark.usefixtures("one_kernel")
def test_with_one_kernel_for_attention_a_layer_is_one_graph_for_all_lengths(graphs: Graphs):
    policy = small_policy(num_hidden_layers=4).train()
    given = batches(6)
    expected_losses, expected = losses_and_gradients(policy, given, "nothing", compiled=False)
    policy.set_recompute("nothing", compiled=True)
    with torch.no_grad():
        policy(given[0])
    policy.eval()(given[0])
    assert graphs.count == 0, "evaluating compiles nothing"
    policy.train()
    losses_and_gradients(policy, given[:2], "nothing", compiled=True)
    assert graphs.count == 2, "one graph for a single row, and one for several"
    losses, found = losses_and_gradients(policy, given, "nothing", compiled=True)
    assert graphs.count == 2
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.usefixtures("one_kernel")
def test_a_graph_that_knows_its_lengths_would_be_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, graphs: Graphs
):
    """Negative control: with attention that reads the documents' lengths inside the graph."""
    each = attention._each_document.__wrapped__  # type: ignore[attr-defined]

    def reading_lengths(*args: Any, scale: float, window: int | None) -> torch.Tensor:
        return each(*args, scale=scale, window=window, softcap=None)

    monkeypatch.setattr(attention, "_varlen", reading_lengths)
    policy = small_policy().train()
    losses_and_gradients(policy, batches(6), "nothing", compiled=True)
    assert graphs.count > 2


def test_layers_that_cannot_be_compiled_are_told_plainly(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    policy = small_policy().train()
    policy.set_recompute("nothing", compiled=True)
    (batch,) = batches(1)
    with pytest.raises(ConfigError) as caught:
        policy(batch)
    (told,) = caught.value.problems
    start = "training.compile: Qwen3DecoderLayer cannot be compiled: "
    assert told.startswith(start)
    assert told.endswith("no compiler here; write false")
