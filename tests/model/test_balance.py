"""The auxiliary loss of experts is transformers' own for each row, and divided once like all else."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tests.architectures import EXPERTS, GRANITE, GROUPED, SINKS, SMALL, VOCABULARY, random_policy
from tests.documents import Documents, random_documents
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.batching.collate import collate
from finetooth.batching.packing import Layout, Row
from finetooth.model.isolation import settle_packing
from finetooth.model.policy import PolicyModel
from finetooth.training.equivalence import compare, compute_alone, compute_step

CPU = DeviceManager("cpu", "fp32")
PADDED = Layout(packing=False, row_tokens=32, rows_at_once=4)
ASKED = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
t: Any = transformers
CONFIGS = [
    t.MixtralConfig(**SMALL, **ASKED, num_local_experts=4),
    t.Qwen3MoeConfig(**SMALL, **EXPERTS, **ASKED, num_experts=4),
    t.OlmoeConfig(**GROUPED, **ASKED, num_experts=4, num_experts_per_tok=2),
    t.GraniteMoeConfig(**GROUPED, **GRANITE, **ASKED, num_local_experts=4, num_experts_per_tok=2),
    t.GptOssConfig(**SINKS, **ASKED),
]
FAMILIES = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)


def some_documents() -> Documents:
    return random_documents(6, vocab_size=VOCABULARY)


def fresh(config: Any) -> PolicyModel:
    policy = random_policy(config).train()
    settle_packing(policy, devices=CPU)
    return policy


def added(policy: PolicyModel, rows: list[Row]) -> float:
    """What training adds to the loss sum of a batch."""
    batch = collate(rows, some_documents(), row_multiple=8)
    with torch.no_grad():
        return float(policy.train()(batch) - policy.eval()(batch))


@FAMILIES
def test_alone_in_its_row_a_document_has_the_loss_and_gradients_of_transformers(config: Any):
    policy = fresh(config)
    ours = compute_step(policy, some_documents(), layout=PADDED, devices=CPU)
    own = compute_alone(policy, some_documents(), devices=CPU)
    assert ours.loss == pytest.approx(own.loss, rel=1e-5)
    assert compare(ours, own).measured < 1e-4
    without = compute_step(policy.eval(), some_documents(), layout=PADDED, devices=CPU)
    assert ours.loss - without.loss > 0.1, "nothing was added"


def test_that_of_a_row_is_transformers_own_over_its_tokens_times_its_loss_weight():
    """Packed rows with padding behind them, one of them empty."""
    policy, documents = fresh(CONFIGS[0]), some_documents()
    rows: list[Row] = [(0, 1, 2), (3, 4), ()]
    batch = collate(rows, documents, row_multiple=64)
    out: Any = policy._backbone(batch, output_router_logits=True)
    expected, num_tokens = 0.0, batch.token_ids_BT.shape[1]
    for place, row in enumerate(rows[:2]):
        start, length = place * num_tokens, int(documents.lengths[list(row)].sum())
        layers = tuple(logits[start : start + length] for logits in out.router_logits)
        loss = float(load_balancing_loss_func(layers, 4, 2))
        expected += 0.5 * loss * float(documents.loss_weight_totals[list(row)].sum())
    assert float(policy.balance_sum(batch)) == pytest.approx(expected, rel=1e-5)


def test_it_is_a_sum_over_rows_and_depends_on_which_documents_share_one():
    policy = fresh(CONFIGS[1])
    one_by_one = sum(added(policy, [row]) for row in ((0, 1), (2, 3), (4, 5)))
    assert added(policy, [(0, 1), (2, 3), (4, 5), ()]) == pytest.approx(one_by_one, rel=1e-4)
    assert added(policy, [(0, 2), (1, 4), (3, 5)]) != pytest.approx(one_by_one, rel=1e-4)
    assert added(policy, [()]) == 0.0


def test_a_model_whose_config_does_not_ask_for_it_gets_none():
    config = t.MixtralConfig(**SMALL, num_local_experts=4, router_aux_loss_coef=0.5)
    policy = fresh(config)
    assert policy.balance is None
    assert added(policy, [(0, 1), (2, 3)]) == 0.0


def test_one_that_is_computed_otherwise_is_refused():
    """Negative control of the proof at loading."""
    policy = random_policy(CONFIGS[0])
    assert policy.balance is not None
    policy.balance = replace(policy.balance, num_chosen=1)
    with pytest.raises(ConfigError) as caught:
        settle_packing(policy, devices=CPU)
    assert str(caught.value) == (
        "model: MixtralForCausalLM: its auxiliary loss is not that of other mixtures of experts; "
        "write output_router_logits: false in config.json"
    )


def test_padding_that_is_counted_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    """Negative control."""
    policy = fresh(CONFIGS[0])
    right = added(policy, [(0,), (1,)])
    everything = lambda positions: torch.ones_like(positions, dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr("finetooth.model.balance._is_real", everything)
    assert added(policy, [(0,), (1,)]) != pytest.approx(right, rel=1e-3)
