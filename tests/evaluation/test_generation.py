"""Greedy answers in batches equal those given one by one, end at stop tokens, and heed no other settings."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import PACKED, UNPACKED, Family, ids, random_policy
from tests.documents import small_policy
from transformers import GenerationConfig

from finetooth.base.devices import DeviceManager
from finetooth.evaluation import generation as module
from finetooth.evaluation.generation import Generation, ends_in_loop, generate, until_stop
from finetooth.model.policy import PolicyModel

CPU = DeviceManager("cpu", "fp32")
STOP = (5,)


def wide_awake(**settings: object) -> PolicyModel:
    """A fresh policy whose logits lie far apart, so that rounding decides no token."""
    policy = small_policy(tie_word_embeddings=False, **settings)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(50)
    return policy


@torch.no_grad()
def naively(
    policy: PolicyModel, prompt: Sequence[int], max_new_tokens: int, stop: Sequence[int]
) -> Generation:
    """One token after another, each from a whole forward pass over everything before it."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with policy.own_attention():
            logits = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        token = int(logits.argmax())
        if token in stop:
            return Generation(tuple(ids[len(prompt) :]), stopped=True)
        ids.append(token)
    return Generation(tuple(ids[len(prompt) :]), stopped=False)


def answer(policy: PolicyModel, prompts: Sequence[Sequence[int]], **options: object) -> list[Generation]:
    defaults: dict[str, object] = {"max_new_tokens": 8, "stop_token_ids": STOP, "devices": CPU}
    return generate(policy, prompts, **{**defaults, **options})  # type: ignore[arg-type]


POLICY = wide_awake()


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=12), min_size=1, max_size=6))
def test_batched_answers_equal_those_given_one_by_one(prompts: list[list[int]]):
    expected = [naively(POLICY, prompt, 8, STOP) for prompt in prompts]
    assert answer(POLICY, prompts) == expected


def test_the_prompts_here_make_it_stop_and_not_stop():
    """The property above would be empty if every answer ended alike."""
    prompts = [[token, token + 1] for token in range(60)]
    stopped = {one.stopped for one in answer(POLICY, prompts)}
    assert stopped == {True, False}


def test_padding_that_is_seen_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    """Negative control: without the attention mask, padded prompts get other answers."""
    prompts = [[token] for token in range(1, 20)] + [list(range(20))]
    expected = answer(POLICY, prompts)
    original = PolicyModel.generate
    monkeypatch.setattr(
        PolicyModel,
        "generate",
        lambda self, ids, attention_mask, **options: original(
            self, ids, attention_mask=torch.ones_like(attention_mask), **options
        ),
    )
    assert answer(POLICY, prompts) != expected


def test_answers_come_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 3)
    prompts = [[number] * (1 + number * 7 % 11) for number in range(10)]
    told: list[int] = []
    answers = answer(POLICY, prompts, on_progress=told.append)
    assert answers == [answer(POLICY, [prompt])[0] for prompt in prompts]
    assert told == [3, 3, 3, 1]


def test_any_of_several_stop_tokens_ends_an_answer():
    first = naively(POLICY, [7, 8], 8, ())
    middle = first.token_ids[3]
    assert answer(POLICY, [[7, 8]], stop_token_ids=(5, middle)) == [
        Generation(first.token_ids[: first.token_ids.index(middle)], stopped=True)
    ]


@pytest.mark.parametrize("family", PACKED + UNPACKED, ids=ids(PACKED + UNPACKED))
def test_every_family_answers_as_it_does_alone(family: Family):
    """Rows that have stopped are left behind; what a family keeps of the past of the others stays right."""
    policy = random_policy(family.config)
    prompts = [[1 + (7 * number + place) % 48 for place in range(1 + 3 * number % 8)] for number in range(7)]
    endless = [naively(policy, prompt, 8, ()).token_ids for prompt in prompts]
    stops = {endless[0][1], endless[3][3], endless[5][6]}
    expected = [until_stop(token_ids, stops) for token_ids in endless]
    assert len({len(one.token_ids) for one in expected}) > 1, "they stop at different times"
    assert answer(policy, prompts, stop_token_ids=tuple(stops)) == expected


def test_no_prompts_give_no_answers():
    assert answer(POLICY, []) == []


def test_an_empty_prompt_is_our_own_mistake():
    with pytest.raises(AssertionError, match="a prompt needs at least one token"):
        answer(POLICY, [[1], []])


OWN_SETTINGS = {"do_sample": True, "temperature": 50.0, "top_k": 20, "repetition_penalty": 9.0}


def test_settings_that_came_with_the_model_do_not_count():
    policy = wide_awake()
    expected = answer(policy, [[1, 2, 3], [4]])
    own = GenerationConfig(**OWN_SETTINGS, eos_token_id=1, max_new_tokens=2)
    policy.model.generation_config = own
    torch.manual_seed(0)
    assert answer(policy, [[1, 2, 3], [4]]) == expected
    assert policy.model.generation_config is own


def test_those_settings_would_change_the_answers():
    """Negative control of the test above."""
    policy = wide_awake()
    expected = answer(policy, [[1, 2, 3]])[0].token_ids
    policy.model.generation_config = GenerationConfig(**OWN_SETTINGS)
    torch.manual_seed(0)
    written = policy.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, eos_token_id=5, pad_token_id=5)
    assert tuple(written[0, 3:].tolist()) != expected


@pytest.mark.parametrize(("length", "num_written"), [(10, 6), (15, 1), (16, 0), (20, 0)])
def test_no_answer_goes_beyond_the_models_positions(length: int, num_written: int):
    policy = wide_awake(max_position_embeddings=16)
    (written,) = answer(policy, [[1] * length], max_new_tokens=50, stop_token_ids=(63,))
    assert len(written.token_ids) == num_written
    assert not written.stopped


@pytest.mark.parametrize("is_training", [True, False])
def test_the_policy_stays_in_its_mode(is_training: bool):
    policy = small_policy().train(is_training)
    answer(policy, [[1]])
    assert policy.training is is_training


def test_an_answer_does_not_depend_on_its_neighbours():
    """A long prompt that leaves little room is answered alone, and takes no room from the others."""
    policy = wide_awake(max_position_embeddings=40)
    short, long, full = [1, 2, 3], list(range(36)), list(range(40))
    (alone,) = answer(policy, [short], max_new_tokens=12)
    together = answer(policy, [short, long, full], max_new_tokens=12)
    assert together[0] == alone
    assert len(together[1].token_ids) <= 4
    assert together[2] == Generation((), stopped=False)


@pytest.mark.parametrize(
    ("token_ids", "loops"),
    [
        ([], False),
        ([7] * 15, False),
        ([7] * 16, True),
        ([7] * 16 + [1], False),
        (list(range(16)), False),
        ([1, 2, 3, 4, 5] * 3, False),  # three times, but fifteen tokens
        ([5] + [1, 2, 3, 4, 5] * 3, True),
        ([9] + [1, 2, 3, 4, 5] * 3, False),
        (list(range(20)) * 3, True),
        (list(range(20)) * 2, False),  # negative control: a text may say a thing twice
        ([99, *list(range(20)) * 3], True),
        ([*list(range(20)) * 3, 99], False),
    ],
)
def test_an_answer_that_ends_in_a_loop_is_told(token_ids: list[int], loops: bool):
    assert ends_in_loop(token_ids) is loops
