"""The estimate of memory counts what PyTorch keeps, and each setting changes the part that it is about."""

import dataclasses

import pytest
import torch
import transformers
from tests.documents import random_documents, small_policy

from finetooth.batching.collate import collate
from finetooth.config.schema import AdapterConfig, TrainingConfig
from finetooth.model.policy import PolicyModel
from finetooth.model.shape import ModelShape
from finetooth.training.footprint import ComputedIn, Footprint, activation_bytes, footprint

SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE = ModelShape(
    num_parameters=1_000_000_000, is_fresh=False, positions=4096, vocabulary=32_000, hidden=2048, layers=16,
    query_width=2048, key_width=512, feed_forward=8192,
)  # fmt: skip


def small_shape(layers: int) -> ModelShape:
    return dataclasses.replace(
        SHAPE, vocabulary=64, hidden=64, layers=layers, query_width=64, key_width=32, feed_forward=192
    )


def llama(layers: int) -> PolicyModel:
    config = transformers.LlamaConfig(vocab_size=64, num_hidden_layers=layers, head_dim=16, **SIZES)
    return PolicyModel(transformers.LlamaForCausalLM(config))


def qwen3(layers: int) -> PolicyModel:
    return small_policy(num_hidden_layers=layers, head_dim=16, **SIZES)


def saved_bytes(policy: PolicyModel) -> tuple[int, int]:
    """What the backward pass of a row keeps besides parameters, and the tokens of that row."""
    documents = random_documents(6, longest=120, seed=1)
    batch = collate([tuple(range(6))], documents)
    known = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(batch)
    return sum(storage.nbytes() for storage in kept.values()), batch.token_ids_BT.numel()


@pytest.mark.parametrize("build", [llama, qwen3])
def test_activations_are_what_pytorch_saves(build):
    """Two layers more, so that embedding, head and loss do not count."""
    few, num_tokens = saved_bytes(build(2))
    more, _ = saved_bytes(build(4))
    measured = (more - few) / num_tokens
    estimate = activation_bytes(small_shape(2), precision="fp32")
    assert 0.95 < estimate / measured < 1.25


def needs(
    *, precision: ComputedIn = "fp32", training: TrainingConfig | None = None, **adapter: object
) -> Footprint:
    return footprint(
        SHAPE,
        training or TrainingConfig(),
        AdapterConfig(**adapter),  # type: ignore[arg-type]
        precision=precision,
        device_type="cuda",
        pass_tokens=4096,
    )


def test_full_training_holds_sixteen_bytes_per_parameter():
    for precision, bytes_each in {"fp32": 16, "bf16": 16, "fp16": 16, "bf16-pure": 8}.items():
        parts = needs(precision=precision)  # type: ignore[arg-type]
        held = parts.parameters + parts.gradients + parts.optimizer
        assert held == bytes_each * SHAPE.num_parameters
    eight_bit = needs(training=TrainingConfig(optimizer="adamw_8bit"))
    assert eight_bit.optimizer == pytest.approx(2 * SHAPE.num_parameters, rel=0.02)


def test_an_adapter_holds_states_of_its_matrices_alone():
    lora, qlora = needs(precision="bf16", type="lora"), needs(precision="bf16", type="qlora")
    assert lora.parameters == pytest.approx(2 * SHAPE.num_parameters, rel=0.05)
    assert qlora.parameters == pytest.approx(0.63 * SHAPE.num_parameters, rel=0.1)
    per_layer = 2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192)
    assert lora.gradients == qlora.gradients == 4 * 16 * 16 * per_layer
    assert needs(precision="bf16", type="lora", r=32).gradients == 2 * lora.gradients


def test_half_precision_halves_activations_nearly_and_copies_parameters():
    single, half = needs(precision="fp32"), needs(precision="bf16")
    assert 0.5 < half.activations / single.activations < 0.65
    assert (single.copies, half.copies) == (0, 2 * SHAPE.num_parameters)


def test_the_total_is_the_sum_of_its_parts():
    assert Footprint(1, 2, 4, 8, 16, 32).total == 63
