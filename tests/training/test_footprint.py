"""The estimate of memory counts what PyTorch keeps, and each setting changes the part that it is about."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.documents import random_documents, small_policy

from finetooth.base.devices import DeviceManager
from finetooth.base.distributed import ALONE
from finetooth.batching.collate import collate
from finetooth.config.schema import AdapterConfig, ModelConfig, TrainingConfig
from finetooth.model.policy import PolicyModel
from finetooth.model.recompute import LADDER, Recompute
from finetooth.model.shape import ModelShape, shape_of
from finetooth.training.footprint import ComputedIn, Footprint, activation_bytes, footprint
from finetooth.training.memory import fits
from finetooth.training.optimizer import create_optimizer
from finetooth.training.parallel import SharedPolicy

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


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that tensors took at once meanwhile, beyond those that were there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


MODELS = {
    "small": {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4},
    "deep": {"vocab_size": 1024, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8},
    "wide": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2},
}


@pytest.mark.parametrize("recompute", LADDER)
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_takes_what_was_estimated_to_a_fifth(name: str, recompute: Recompute, tmp_path: Path):
    """Beside the parameters: gradients, states, activations and logits of the largest pass."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    documents = random_documents(12, longest=60, seed=1)
    policy = small_policy(**MODELS[name], **heads)
    policy.model.config.save_pretrained(tmp_path)
    policy.train()
    policy.set_recompute(recompute)
    batch, optimizer = collate([tuple(range(12))], documents), create_optimizer(policy, learning_rate=1e-3)
    shared, devices = SharedPolicy(policy, policy, ALONE), DeviceManager("cpu", "fp32")

    def rehearse() -> None:
        assert fits(shared, batch, optimizer=optimizer, devices=devices)

    rehearse()
    estimated = footprint(
        shape_of(ModelConfig(from_config=str(tmp_path / "config.json"))),
        TrainingConfig(),
        AdapterConfig(),
        precision="fp32",
        device_type="cpu",
        pass_tokens=batch.token_ids_BT.numel(),
        pass_targets=len(batch.targets_N),
        recompute=recompute,
    )
    besides = estimated.parameters + estimated.checkpoint + estimated.libraries
    assert estimated.total - besides == pytest.approx(most_allocated(rehearse), rel=0.2)


def test_a_peak_is_told_where_two_tensors_are_there_at_once():
    def in_turns() -> None:
        for _ in range(3):
            torch.ones(100_000)

    def at_once() -> None:
        _ = [torch.ones(100_000) for _ in range(3)]

    assert most_allocated(in_turns) == pytest.approx(400_000, rel=0.01)
    assert most_allocated(at_once) == pytest.approx(1_200_000, rel=0.01)


def test_on_a_cpu_the_process_and_the_copy_that_is_being_written_count():
    def parts(device_type: str, *, background: bool = True) -> Footprint:
        options = {"precision": "fp32", "device_type": device_type, "pass_tokens": 10}
        return footprint(SHAPE, TrainingConfig(), AdapterConfig(), **options, background=background)  # type: ignore[arg-type]

    on_gpu, on_cpu = parts("cuda"), parts("cpu")
    assert (on_gpu.checkpoint, on_gpu.libraries) == (0, 0)
    assert on_cpu.checkpoint == 12 * SHAPE.num_parameters
    assert on_cpu.libraries > 0
    assert parts("cpu", background=False).checkpoint == 0


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
    assert Footprint(1, 2, 4, 8, 16, 32, 64, 128).total == 255
