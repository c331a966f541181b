"""Tokenizers with habits of their own: a BOS, tokens that swallow whitespace, unknown characters."""

import json

import numpy as np
import tokenizers
from tests.chat import (
    conversation,
    plain_messages,
    plain_text,
    tiny_tokenizer,
)
from tokenizers import models, pre_tokenizers, trainers

from finetooth.data.masks.masking import render_documents, render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.masks.turns import MaskOptions
from finetooth.data.records import Conversation, Document
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer


def rendered(template: Template, talk: Conversation) -> tuple[Document, ...]:
    [documents] = render_documents([talk], template)
    assert not isinstance(documents, Refusal), documents
    return documents


def target_texts(document: Document, tokenizer: Tokenizer) -> list[str]:
    """The text of each unbroken run of targets."""
    edges = np.flatnonzero(np.diff(document.loss_weights, prepend=0, append=0))
    return [tokenizer.decode(document.token_ids[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


def control_ids(token_ids: list[int], tokenizer: Tokenizer) -> list[int]:
    known = set(tokenizer.control_tokens.values())
    return [token_id for token_id in token_ids if token_id in known]


def test_concat_begins_with_one_bos_where_the_tokenizer_adds_it():
    definition = json.loads(tiny_tokenizer().definition)
    bos = tiny_tokenizer().control_tokens["<s>"]
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    }
    special_tokens = {"bos_token": "<s>", "eos_token": "<|end_of_text|>"}
    tokenizer = Tokenizer(TokenizerFiles(definition, special_tokens))
    template = resolve_template("auto", tokenizer, is_prompt_response=True)
    assert template.name == "concat"
    [document] = rendered(template, conversation("<s>a", "b"))
    assert document.token_ids.tolist() == [
        bos,
        *tokenizer.encode_text("<s>a"),
        *tokenizer.encode_text("b"),
        tokenizer.eos_token_id,
    ]
    assert control_ids(document.token_ids.tolist(), tokenizer) == [bos, tokenizer.eos_token_id]


def test_control_tokens_that_swallow_whitespace_do_so_as_in_the_tokenizer_itself():
    """Phi-3's tokens are such: the newline behind them is no token of its own."""
    definition = json.loads(tiny_tokenizer().definition)
    for token in definition["added_tokens"]:
        token |= {"rstrip": token["content"] == "<|im_end|>", "lstrip": token["content"] == "<think>"}
    template = resolve_template("chatml", Tokenizer(TokenizerFiles(definition, {})))
    tokenizer = template.tokenizer
    talk = conversation("3 apples? ", "27 ", " 4 ", "b <think> c")
    [document] = rendered(template, talk)
    assert target_texts(document, tokenizer) == ["27 <|im_end|>", "b <think> c<|im_end|>"]
    harmless = conversation("3 apples? ", "27 ", " 4 ", "b")
    [document] = rendered(template, harmless)
    text = plain_text(template, plain_messages(harmless), add_generation_prompt=False)
    assert document.token_ids.tolist() == tokenizer.backend.encode(text).ids
    assert "\n" not in tokenizer.decode(document.token_ids.tolist()[-2:])


def test_a_token_that_swallows_whitespace_takes_none_of_an_answer():
    definition = json.loads(tiny_tokenizer().definition)
    for token in definition["added_tokens"]:
        token["rstrip"] = token["content"] == "<think>"
    text = (
        "{% for m in messages %}{{ '<think>\n' if m.role == 'assistant' }}{{ m.content }}<|im_end|>"
        "{% endfor %}{{ '<think>\n' if add_generation_prompt }}"
    )
    template = resolve_template("auto", Tokenizer(TokenizerFiles(definition, {}, text)))
    for answer, num_seams in ((" \n27", 1), ("27", 0)):
        [documents], report = render_with_report(
            [conversation("a", answer)], template, options=MaskOptions(loss_on="last")
        )
        assert not isinstance(documents, Refusal)
        assert target_texts(documents[0], template.tokenizer) == [answer + "<|im_end|>"]
        assert report.num_seams == num_seams


def test_characters_that_the_vocabulary_lacks_are_no_control_tokens():
    plain = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["[UNK]", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=names, show_progress=False)
    plain.train_from_iterator(["user assistant answer"], trainer)
    tokenizer = Tokenizer(TokenizerFiles(json.loads(plain.to_str()), {"unk_token": "[UNK]"}))
    [document] = rendered(resolve_template("chatml", tokenizer), conversation("日本", "answer [UNK]"))
    assert document.token_ids.tolist().count(tokenizer.control_tokens["[UNK]"]) == 2
    assert document.loss_weights.tolist()[-3:] == [1, 1, 1]
