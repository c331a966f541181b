"""Residual dropout: a pure function of seed, step, document, position, block and feature."""

import copy

import numpy as np
import pytest
import torch
import transformers
from tests.documents import random_documents, small_config, small_policy
from transformers import AutoModelForCausalLM

from finetooth.base.errors import ConfigError
from finetooth.batching.collate import collate
from finetooth.batching.order import draw_keys
from finetooth.model.dropout import num_groups, random_bits
from finetooth.model.policy import PolicyModel

NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def loss(policy: PolicyModel, *, step: int = 1, seed: int = 7, keyed: bool = True) -> float:
    documents = random_documents(6)
    draw = (seed, step) if keyed else None
    return policy(collate([(0, 1, 2, 3), (4, 5)], documents, dropout_draw=draw)).item()


def dropping(probability: float) -> PolicyModel:
    policy = small_policy().train()
    policy.set_dropout(probability)
    return policy


def test_the_same_step_drops_the_same_whatever_happened_before():
    policy, before = dropping(0.3), torch.get_rng_state()
    first = loss(policy)
    torch.rand(5)
    others = {loss(policy, step=2), loss(policy, seed=8), loss(policy, keyed=False)}
    assert loss(policy) == first
    assert len(others | {first}) == 4
    torch.rand(5)
    assert loss(dropping(0.3)) == first
    torch.set_rng_state(before)
    loss(policy)
    assert torch.equal(torch.get_rng_state(), before), "the global state of random numbers is not touched"


def test_nothing_is_dropped_in_evaluation_without_keys_and_at_zero():
    plain = loss(small_policy().train())
    policy = dropping(0.3)
    assert loss(policy, keyed=False) == plain
    assert loss(policy.eval()) == plain
    policy.train().set_dropout(0.0)
    assert loss(policy) == plain


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.95])
def test_the_share_is_dropped_and_the_rest_scaled_up(probability: float):
    """Looked at in the first block, whose input is the same with and without dropout."""
    policy = dropping(probability)
    seen: list[torch.Tensor] = []
    policy.layers[0].self_attn.register_forward_hook(lambda _, __, output: seen.append(output[0].detach()))
    loss(policy)
    loss(policy, keyed=False)
    dropped, plain = seen
    is_kept = dropped != 0
    share, expected = float(is_kept.float().mean()), 1 - probability
    assert abs(share - expected) < 5 * (probability * expected / is_kept.numel()) ** 0.5
    torch.testing.assert_close(dropped[is_kept], plain[is_kept] / expected, rtol=1e-4, atol=0)


def test_bits_are_those_of_splitmix64():
    """From 0, its first number is e220a8397b1dcdaf; four features share one number."""
    keys = torch.tensor([[0, -1]])
    assert [f"{bits & 0xFFFF:x}" for bits in random_bits(keys, 0, 4)[0, 0].tolist()] == [
        *("cdaf", "7b1d", "a839", "e220")
    ]
    assert random_bits(keys, 0, 6)[0, 1].tolist() == [11296, 7013, 29047, -6951, -32055, -9226]
    assert torch.equal(random_bits(keys, 1, 4), random_bits(keys, 0, 8)[..., 4:])


def test_bits_of_neighbours_are_independent():
    """Correlations between positions, features and blocks stay within five standard deviations of none."""
    num_tokens, num_features = 512, 510
    keys = torch.from_numpy(draw_keys(1, 2, 3, count=num_tokens).view(np.int64))[None]
    first, second = (
        (random_bits(keys, block * num_groups(num_features), num_features)[0] >= 0).double() * 2 - 1
        for block in (0, 1)
    )
    for a, b in (
        (first, second),
        (first[1:], first[:-1]),
        *((first[:, distance:], first[:, :-distance]) for distance in (1, 2, 3, 4)),
    ):
        assert abs(float((a * b).mean())) < 5 / a.numel() ** 0.5
    assert abs(float(first.mean(dim=0).abs().max())) < 6 / num_tokens**0.5


def test_a_copy_drops_by_its_own_keys():
    policy = dropping(0.3)
    twin = copy.deepcopy(policy)
    policy.set_dropout(0.0)
    assert loss(twin) == loss(dropping(0.3))
    assert loss(policy) == loss(small_policy().train())


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**SMALL),
        transformers.Qwen2Config(**SMALL),
        transformers.MistralConfig(**SMALL),
        transformers.Gemma2Config(**SMALL),
        transformers.Gemma3TextConfig(**SMALL),
        transformers.Phi3Config(**SMALL),
        transformers.Olmo2Config(**SMALL),
        transformers.GraniteConfig(**SMALL),
        transformers.CohereConfig(**SMALL),
        transformers.Starcoder2Config(**SMALL),
        transformers.SmolLM3Config(**SMALL),
        transformers.MixtralConfig(**SMALL, num_local_experts=4),
        transformers.Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
        transformers.GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, **NO_DROPOUT
        ),
        transformers.GPTNeoXConfig(**SMALL),
        small_config(),
    ],
    ids=lambda config: config.model_type,
)
def test_layers_and_their_blocks_are_found_in_every_family(config: transformers.PreTrainedConfig):
    policy = PolicyModel(AutoModelForCausalLM.from_config(config)).train()
    assert len(policy.layers) == 2
    policy.set_dropout(0.4)
    plain = loss_of_tokens(policy, keyed=False)
    assert loss_of_tokens(policy) != plain


def loss_of_tokens(policy: PolicyModel, *, keyed: bool = True) -> float:
    documents = random_documents(3, vocab_size=50)
    return policy(collate([(0, 1, 2)], documents, dropout_draw=(1, 1) if keyed else None)).item()


def test_a_layer_whose_blocks_cannot_be_told_is_refused():
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 2}
    config = transformers.OPTConfig(vocab_size=50, num_attention_heads=2, **sizes)
    policy = PolicyModel(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ConfigError) as caught:
        policy.set_dropout(0.1)
    assert str(caught.value) == (
        "training.dropout: the attention and the feed-forward block of OPTDecoderLayer cannot be told: "
        "self_attn, activation_fn, self_attn_layer_norm, fc1, fc2, final_layer_norm; "
        "write 0, or use another architecture"
    )
    policy.set_dropout(0.0)
