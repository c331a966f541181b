"""Plain texts are trained whole, given tokens as given, once they can be."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chat import tiny_tokenizer

from finetooth.data.masks.masking import RenderReport, render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.masks.turns import MaskOptions
from finetooth.data.records import Conversation, Document, GivenTokens, Message, Origin, PlainText
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer

ORIGIN = Origin("t.jsonl", 1)
STOP = tiny_tokenizer().control_tokens["<|im_end|>"]
END = tiny_tokenizer().control_tokens["<|end_of_text|>"]


def template() -> Template:
    return resolve_template("chatml", tiny_tokenizer())


def windows(
    text: str, max_length: int | None = None, *, used: Template | None = None
) -> tuple[Document, ...]:
    options = MaskOptions(max_length=max_length)
    [result], _ = render_with_report([PlainText(text, ORIGIN)], used or template(), options=options)
    assert not isinstance(result, Refusal), result
    return result


def given_tokens(ids: list[int], weights: list[float]) -> GivenTokens:
    return GivenTokens(np.array(ids, np.int32), np.array(weights, np.float32), ORIGIN)


def refusal(item: PlainText | GivenTokens, used: Template | None = None) -> str:
    [result], report = render_with_report([item], used or template())
    assert isinstance(result, Refusal), result
    assert report == RenderReport()
    return f"{result.reason}; {result.remedy}"


def test_a_text_is_trained_whole_and_ends_with_the_end_token():
    [document] = windows("Two and two is four.")
    ids = [*tiny_tokenizer().encode_text("Two and two is four."), END]
    assert document.token_ids.tolist() == ids
    assert document.loss_weights.tolist() == [0] + [1] * (len(ids) - 1)
    assert (document.prompt_length, document.origin) == (1, ORIGIN)


def test_a_text_begins_with_the_tokenizers_own_bos():
    definition = json.loads(tiny_tokenizer().definition)
    bos = tiny_tokenizer().control_tokens["<s>"]
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    }
    tokenizer = Tokenizer(TokenizerFiles(definition, {"bos_token": "<s>", "eos_token": "<|end_of_text|>"}))
    [document] = windows("<s>four", used=resolve_template("chatml", tokenizer))
    assert document.token_ids.tolist() == [bos, *tokenizer.encode_text("<s>four"), END]
    assert document.loss_weights[:2].tolist() == [0, 1], "the text's first token is predicted from the BOS"


@given(length=st.integers(2, 12), words=st.integers(1, 30))
def test_windows_make_every_token_a_target_once(length: int, words: int):
    text = "four " * words
    [whole] = windows(text)
    parts = windows(text, length)
    assert max(len(part.token_ids) for part in parts) <= length
    assert max(len(part.token_ids) for part in parts) - min(len(part.token_ids) for part in parts) <= 1
    trained = [number for part in parts for number in part.token_ids[1:].tolist()]
    assert [int(parts[0].token_ids[0]), *trained] == whole.token_ids.tolist()
    firsts = [int(part.token_ids[0]) for part in parts[1:]]
    assert firsts == [int(part.token_ids[-1]) for part in parts[:-1]]
    assert all(part.loss_weights.tolist() == [0] + [1] * (len(part.token_ids) - 1) for part in parts)


def test_divided_texts_are_counted():
    items = [PlainText("four " * 20, ORIGIN), PlainText("4", ORIGIN)]
    results, report = render_with_report(items, template(), options=MaskOptions(max_length=8))
    assert report == RenderReport(num_divided=1)
    assert [len(result) > 1 for result in results if not isinstance(result, Refusal)] == [True, False]


def test_texts_that_cannot_be_used():
    assert (
        refusal(PlainText(" \n", ORIGIN)) == "empty text: nothing to train; write a text, or drop the record"
    )
    expected = "it holds half a surrogate pair, which is no character; remove it"
    assert refusal(PlainText("a\ud83d", ORIGIN)) == expected
    endless = resolve_template(
        "chatml", Tokenizer(TokenizerFiles(json.loads(tiny_tokenizer().definition), {}))
    )
    expected = "the tokenizer has no end token to end a text with; name its eos_token"
    assert refusal(PlainText("a", ORIGIN), endless) == expected


def test_given_tokens_are_trained_as_given():
    item = given_tokens([5, 6, 7, STOP, 8, 9, STOP, 10], [0, 0, 0.5, 0.5, 0, 1, 1, 0])
    [result], report = render_with_report([item], template())
    assert report == RenderReport()
    assert not isinstance(result, Refusal)
    [document] = result
    assert document.token_ids.tolist() == item.token_ids.tolist()
    assert document.loss_weights.tolist() == item.loss_weights.tolist()
    assert (document.prompt_length, document.token_ids.dtype) == (5, np.int32)


@pytest.mark.parametrize("stop", [STOP, END])
def test_a_stop_token_that_is_left_out_behind_targets(stop: int):
    item = given_tokens([5, 6, stop, 10, 7, stop], [0, 0.5, 0, 0, 1, 0])
    name = tiny_tokenizer().decode([stop])
    assert refusal(item) == (
        f"{name} behind its targets (token 2) is no target: nothing would learn to stop; "
        "set data.train_end_token: true, or make it a target"
    )
    [result], report = render_with_report([item], template(), options=MaskOptions(train_end_token=True))
    assert not isinstance(result, Refusal)
    assert result[0].loss_weights.tolist() == [0, 0.5, 0.5, 0, 1, 1]
    assert report == RenderReport(num_end_tokens=2)
    assert item.loss_weights.tolist() == [0, 0.5, 0, 0, 1, 0], "what was given is left alone"


def test_an_end_of_text_behind_a_trained_end_of_turn_need_not_be_trained():
    item = given_tokens([5, 6, STOP, END], [0, 1, 1, 0])
    [result], report = render_with_report([item], template(), options=MaskOptions(train_end_token=True))
    assert not isinstance(result, Refusal)
    assert result[0].loss_weights.tolist() == [0, 1, 1, 0]
    assert report == RenderReport()


def test_given_tokens_that_cannot_be():
    largest = tiny_tokenizer().largest_id
    beyond = f"the tokenizer's ids end at {largest}; "
    beyond += "encode it with this tokenizer, or name the one it was encoded with"
    assert refusal(given_tokens([5, largest + 1], [0, 1])) == f"token 1 is {largest + 1}; {beyond}"
    assert refusal(given_tokens([-1, 5], [0, 1])) == f"token 0 is -1; {beyond}"
    expected = "2 tokens, 3 loss weights; give one weight for each token"
    assert refusal(given_tokens([5, 6], [0, 1, 1])) == expected
    for weight in (-1.0, float("nan"), float("inf")):
        expected = "a loss weight is negative or no number; write 0 or more"
        assert refusal(given_tokens([5, 6], [0, weight])) == expected
    expected = "its first token is a target, which nothing predicts; set its weight to 0"
    assert refusal(given_tokens([5, 6], [1, 1])) == expected
    for ids in ([], [5], [5, 6]):
        expected = "no target: nothing to train; give it labels, or drop the record"
        assert refusal(given_tokens(ids, [0.0] * len(ids))) == expected


def test_items_of_all_kinds_keep_their_order():
    talk = Conversation((Message("user", "a"), Message("assistant", "talk")), ORIGIN)
    items = [PlainText("text", ORIGIN), talk, given_tokens([5, 6], [0, 1]), PlainText("", ORIGIN), talk]
    results, _ = render_with_report(items, template())
    alone = [render_with_report([item], template())[0][0] for item in items]
    for result, single in zip(results, alone, strict=True):
        if isinstance(single, Refusal):
            assert result == single
            continue
        assert not isinstance(result, Refusal)
        assert [d.token_ids.tolist() for d in result] == [d.token_ids.tolist() for d in single]
