"""Added tokens get the mean of the trained rows, and template tokens that were never trained are named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.documents import small_policy
from tests.small_tokenizer import write_small_tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from finetooth.base.errors import ConfigError
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.model.policy import PolicyModel
from finetooth.model.vocabulary import add_rows, find_untrained

VOCABULARY = 299
SIX = 6


@pytest.fixture
def folder(tmp_path: Path) -> str:
    name = write_small_tokenizer(tmp_path)
    assert load_tokenizer(name).largest_id == VOCABULARY - 1
    return name


def six_token(folder: str) -> Template:
    """Its tokens have the ids 299 to 304."""
    return resolve_template("six-token", load_tokenizer(folder))


def chatml(folder: str) -> Template:
    """Its tokens are the tokenizer's own."""
    return resolve_template("chatml", load_tokenizer(folder))


def embedding(policy: PolicyModel) -> torch.Tensor:
    return policy.model.get_input_embeddings().weight.detach()


def head(policy: PolicyModel) -> torch.nn.Linear:
    return policy.model.get_output_embeddings()  # type: ignore[return-value]


@pytest.mark.parametrize("is_tied", [True, False])
def test_new_rows_are_the_mean_of_the_old_ones(folder: str, is_tied: bool):
    policy = small_policy(vocab_size=VOCABULARY, tie_word_embeddings=is_tied)
    before = [tensor.clone() for tensor in (embedding(policy), head(policy).weight.detach())]
    add_rows(policy, six_token(folder))
    after = [embedding(policy), head(policy).weight.detach()]
    for old, new in zip(before, after, strict=True):
        assert new.shape == (VOCABULARY + SIX, 32)
        assert torch.equal(new[:VOCABULARY], old)
        mean = old.double().mean(dim=0).float()
        assert torch.equal(new[VOCABULARY:], mean.expand(SIX, -1))
    assert policy.model.config.vocab_size == policy.vocab_size == VOCABULARY + SIX
    assert (head(policy).weight is policy.model.get_input_embeddings().weight) == is_tied


def test_a_bias_of_the_head_grows_with_it(folder: str):
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = GPTNeoXForCausalLM(config)
    biased = torch.nn.Linear(16, VOCABULARY)
    torch.nn.init.normal_(biased.bias, mean=3.0)
    model.set_output_embeddings(biased)
    bias = biased.bias.detach().clone()
    policy = PolicyModel(model)
    add_rows(policy, six_token(folder))
    grown = head(policy).bias.detach()
    assert torch.equal(grown[:VOCABULARY], bias)
    assert torch.allclose(grown[VOCABULARY:], bias.mean().expand(SIX))
    assert head(policy).weight.shape == (VOCABULARY + SIX, 16)


@pytest.mark.parametrize("num_rows", [VOCABULARY + 2, VOCABULARY + SIX, VOCABULARY + 20])
def test_free_rows_are_used_and_do_not_count_in_the_mean(folder: str, num_rows: int):
    policy = small_policy(vocab_size=num_rows)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[VOCABULARY:] = 1000
    mean = embedding(policy)[:VOCABULARY].double().mean(dim=0).float()
    add_rows(policy, six_token(folder))
    assert policy.vocab_size == max(num_rows, VOCABULARY + SIX)
    assert torch.equal(embedding(policy)[VOCABULARY : VOCABULARY + SIX], mean.expand(SIX, -1))
    assert (embedding(policy)[VOCABULARY + SIX :] == 1000).all()


def test_rows_that_look_untrained_do_not_count_in_the_mean(folder: str):
    policy = small_policy(vocab_size=VOCABULARY)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[:3] = 1000
    mean = embedding(policy)[3:VOCABULARY].double().mean(dim=0).float()
    add_rows(policy, six_token(folder))
    assert torch.equal(embedding(policy)[VOCABULARY], mean)


def test_nothing_changes_where_nothing_was_added(folder: str):
    policy = small_policy(vocab_size=VOCABULARY)
    before = embedding(policy).clone()
    add_rows(policy, chatml(folder))
    assert torch.equal(embedding(policy), before)


def test_a_model_that_lacks_other_tokens_too_is_not_mended(folder: str):
    policy = small_policy(vocab_size=VOCABULARY - 1)
    with pytest.raises(ConfigError) as caught:
        add_rows(policy, six_token(folder))
    assert str(caught.value) == (
        "model.tokenizer: ids up to 298, but the embedding has 298 rows; "
        "use the tokenizer that belongs to the model"
    )


# Tokens that look untrained.


def changed(folder: str, change: Any, **settings: Any) -> tuple[str, ...]:
    """What is named after `change(rows, id of <|im_start|>, id of <|im_end|>)` of the embedding."""
    policy = small_policy(vocab_size=VOCABULARY, **settings)
    ids = load_tokenizer(folder).control_tokens
    with torch.no_grad():
        change(policy, ids["<|im_start|>"], ids["<|im_end|>"])
    return find_untrained(policy, chatml(folder))


def rows(policy: PolicyModel) -> torch.Tensor:
    return policy.model.get_input_embeddings().weight


def test_a_usual_model_is_not_remarked_on(folder: str):
    assert changed(folder, lambda policy, start, end: None) == ()


def test_rows_that_are_zero_constant_or_of_another_size_are_named(folder: str):
    def zero(policy: PolicyModel, start: int, end: int) -> None:
        rows(policy)[end] = 0

    def tiny(policy: PolicyModel, start: int, end: int) -> None:
        rows(policy)[start] *= 0.01

    def large(policy: PolicyModel, start: int, end: int) -> None:
        rows(policy)[end] *= 30

    def equal(policy: PolicyModel, start: int, end: int) -> None:
        rows(policy)[start] = rows(policy)[end]

    def usual_size(policy: PolicyModel, start: int, end: int) -> None:
        rows(policy)[start] *= 1.5

    assert changed(folder, zero) == ("<|im_end|>",)
    assert changed(folder, tiny) == ("<|im_start|>",)
    assert changed(folder, large) == ("<|im_end|>",)
    assert changed(folder, equal) == ("<|im_start|>", "<|im_end|>")
    assert changed(folder, usual_size) == ()


def test_an_untied_head_is_looked_at_too(folder: str):
    def zero(policy: PolicyModel, start: int, end: int) -> None:
        head(policy).weight[end] = 0

    assert changed(folder, zero, tie_word_embeddings=False) == ("<|im_end|>",)


def test_added_tokens_are_known_to_be_new(folder: str):
    policy = small_policy(vocab_size=VOCABULARY)
    template = six_token(folder)
    add_rows(policy, template)
    assert find_untrained(policy, template) == ()
