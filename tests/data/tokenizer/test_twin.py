"""A twin tells what the template wrote from message text, and lets through only what is allowed."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests.chat import CONTROL_TOKENS, tiny_tokenizer, wild_text
from tokenizers import models, normalizers, pre_tokenizers, trainers

from finetooth.data.templates.provenance import UNPLACED, Traced, joined
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer
from finetooth.data.tokenizer.twin import MessageRun, Twin

SOURCE = (0, "content")


def traced(text: str) -> Traced:
    return Traced(text, ((len(text), SOURCE, 0),))


def twin_of(text: str = "") -> Twin:
    return tiny_tokenizer().twin_for([text])


def test_the_template_writes_tokens_and_a_message_the_allowed_ones_only():
    twin = twin_of()
    rendered = twin.neutralise(joined(["<s>", traced("a<think>b<s>")]), allowed=frozenset({"<think>"}))
    ids = tiny_tokenizer().control_tokens
    assert twin.ids_of(rendered.text[0] + rendered.text[2]) == [ids["<s>"], ids["<think>"]]
    assert (rendered.controls, rendered.allowed) == ((0,), (2,))
    assert rendered.messages == (
        MessageRun(1, 1, SOURCE, 0, 1),
        MessageRun(2, 1, SOURCE, 1, 8),
        MessageRun(3, 4, SOURCE, 8, 12),
    )
    assert rendered.text[3:] == "b<s>"


def test_an_allowed_token_that_lost_its_place_has_none():
    shouted = Traced("a<think>", ((8, SOURCE, UNPLACED),))
    rendered = twin_of().neutralise(shouted, allowed=frozenset({"<think>"}))
    assert [(run.start, run.end) for run in rendered.messages] == [(UNPLACED, UNPLACED)] * 2
    assert rendered.allowed == (1,)


@given(text=wild_text(), allowed=st.frozensets(st.sampled_from(CONTROL_TOKENS)))
def test_message_text_gives_exactly_the_allowed_tokens_and_loses_nothing(text: str, allowed: frozenset[str]):
    tokenizer = tiny_tokenizer()
    twin = twin_of(text)
    rendered = twin.neutralise(traced(text), allowed=allowed)
    token_ids = twin.encode_batch([rendered.text])[0]
    found = token_ids[twin.find_controls(token_ids)].tolist()
    assert found == twin.ids_of(rendered.text[place] for place in rendered.allowed)
    assert set(found) <= {tokenizer.control_tokens[name] for name in allowed}
    assert not any(name in allowed for name in twin.names_in(rendered.text))
    assert tokenizer.decode(token_ids.tolist()) == text
    assert "".join(text[run.start : run.end] for run in rendered.messages) == text


def test_names_of_control_tokens_that_stayed_text_are_found():
    twin = twin_of()
    rendered = twin.neutralise(joined(["<s>", traced("<s> <s <think><think>"), "<s>"]))
    assert twin.names_in(rendered.text) == ["<s>", "<think>", "<think>"]


def _with_a_space_before_text(kind: str) -> Tokenizer:
    """Like SentencePiece's: a space before the first word, or before that of every stretch of plain text."""
    plain = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "normalizer":
        plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    plain.train_from_iterator(["two and two is four"] * 8, trainer)
    return Tokenizer(TokenizerFiles(json.loads(plain.to_str()), {"eos_token": "</s>"}))


@pytest.mark.parametrize("kind", ["normalizer", "always", "first", "never"])
def test_text_behind_a_seam_is_given_no_space_of_its_own(kind: str):
    """As it would be if it stood alone; behind a control token it has the one the tokenizer gives it."""
    tokenizer = _with_a_space_before_text(kind)
    name_of = tokenizer.backend.id_to_token
    twin = tokenizer.twin_for([])
    rest = twin.neutralise(joined([traced("o and"), "</s>", traced("two")])).text
    pieces = [name_of(int(token_id)) for token_id in twin.encode_after_mark(rest)]
    assert "".join(pieces) == {"normalizer": "o▁and</s>▁two", "always": "o▁and</s>▁two"}.get(
        kind, "o▁and</s>two"
    )
    behind_seam = twin.last_characters("tw" + rest, seam=2)[-len(pieces) :]
    assert behind_seam[0] == 2 + len(pieces[0]) - 1
    assert behind_seam[-1] == len("tw" + rest) - 1
    assert len(twin.last_characters("tw" + rest, seam=2)) == len(pieces) + len(twin.encode_batch(["tw"])[0])
