"""A tokenizer encodes message text without control tokens, and reads its files as transformers does."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat import CONTROL_TOKENS, SAMPLE, save_tokenizer, tiny_definition, tiny_tokenizer, wild_text
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetooth.base.errors import ConfigError, DataError
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer


def message_of(error: pytest.ExceptionInfo[ConfigError]) -> str:
    return str(error.value)


@given(text=wild_text())
@settings(max_examples=200, deadline=None)
def test_message_text_never_becomes_a_control_token_and_decodes_to_itself(text: str):
    tokenizer = tiny_tokenizer()
    token_ids = tokenizer.encode_text(text)
    assert set(token_ids).isdisjoint(tokenizer.control_tokens.values())
    assert tokenizer.decode(token_ids) == text


def test_a_naive_encoder_does_give_control_tokens():
    """Or the test above would prove nothing."""
    tokenizer = tiny_tokenizer()
    for token, token_id in tokenizer.control_tokens.items():
        assert token_id in tokenizer.backend.encode(f"a {token} b").ids
        assert token_id not in tokenizer.encode_text(f"a {token} b")


@given(token_ids=st.lists(st.integers(0, tiny_tokenizer().largest_id), max_size=30))
def test_any_ids_decode_as_the_whole_tokenizer_decodes_them(token_ids: list[int]):
    tokenizer = tiny_tokenizer()
    expected = tokenizer.backend.decode(token_ids, skip_special_tokens=False)
    assert tokenizer.decode(token_ids) == expected


@pytest.mark.parametrize("name", ["qwen3", "mistral_v3", "olmo_neox"])
def test_real_tokenizers_decode_any_ids_as_a_whole(shared: Path, name: str):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / name))
    ids = [number * 7919 % (tokenizer.largest_id + 1) for number in range(2000)]
    for start in range(0, len(ids), 50):
        portion = ids[start : start + 50]
        assert tokenizer.decode(portion) == tokenizer.backend.decode(portion, skip_special_tokens=False)


def test_text_without_control_strings_gets_the_ids_of_the_tokenizer_itself():
    tokenizer = tiny_tokenizer()
    assert tokenizer.encode_text(SAMPLE) == tokenizer.backend.encode(SAMPLE).ids
    assert tokenizer.encode_text("") == []


def test_text_that_cannot_be_told_from_control_tokens_is_refused():
    with pytest.raises(DataError) as caught:
        tiny_tokenizer().encode_text("\U000f0001 \U00100001")
    assert str(caught.value) == (
        "text: it holds private-use characters of both planes that stand for control tokens; "
        "remove the characters from U+F0000 on"
    )
    with pytest.raises(DataError) as caught:
        tiny_tokenizer().encode_text("\ud83d")
    assert str(caught.value) == "text: it holds half a surrogate pair, which is no character; remove it"


def _unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE] * 4, trainer)
    return tokenizer


def _word_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE] * 4, trainer)
    return tokenizer


def _bpe_that_can_merge_into_a_control_token() -> tokenizers.Tokenizer:
    vocabulary = {"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4, "a": 5}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [("<", "s"), ("<s", ">")]))
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


@pytest.mark.parametrize("make", [_unigram, _word_piece, _bpe_that_can_merge_into_a_control_token])
def test_control_tokens_inside_the_vocabulary_are_out_of_reach_too(make: Any):
    plain: tokenizers.Tokenizer = make()
    tokenizer = Tokenizer(TokenizerFiles(json.loads(plain.to_str()), {}))
    [*_, control] = tokenizer.control_tokens
    control_id = tokenizer.control_tokens[control]
    assert control_id in plain.encode(f"a {control} a", add_special_tokens=False).ids
    assert control_id not in tokenizer.encode_text(f"a {control} a")
    assert tokenizer.encode_text("aa") == plain.encode("aa", add_special_tokens=False).ids


def test_a_tokenizer_without_control_tokens_still_encodes():
    definition = json.loads(tiny_definition()) | {"added_tokens": []}
    tokenizer = Tokenizer(TokenizerFiles(definition, {}))
    assert tokenizer.encode_text("3 apples") == tiny_tokenizer().encode_text("3 apples")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (None, None)


def test_a_tokenizer_whose_ids_have_a_gap_is_refused_when_they_would_move():
    definition = json.loads(tiny_definition())
    definition["added_tokens"][-1]["id"] += 7
    tokenizer = Tokenizer(TokenizerFiles(definition, {}))
    with pytest.raises(ConfigError) as caught:
        tokenizer.encode_text("a")
    token_id = definition["added_tokens"][-1]["id"]
    assert message_of(caught) == (
        f"model.tokenizer: its control tokens cannot be told from text (token {token_id} does not keep "
        "its id under another name); use another tokenizer"
    )


def test_what_a_tokenizer_tells_of_itself(tmp_path: Path):
    folder = save_tokenizer(
        tmp_path,
        tiny_definition(),
        eos_token="<|end_of_text|>",
        bos_token={"content": "<s>", "lstrip": False},
        chat_template="{{ 1 }}",
    )
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.folder == folder
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|end_of_text|>"}
    ids = {token: tokenizer.backend.token_to_id(token) for token in CONTROL_TOKENS}
    assert tokenizer.control_tokens == ids
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", ids["<s>"])
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end_of_text|>", ids["<|end_of_text|>"])
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (None, None)
    assert tokenizer.vocab_size == tokenizer.backend.get_vocab_size()
    assert tokenizer.largest_id == max(tokenizer.backend.get_vocab().values())
    assert tokenizer.chat_template == "{{ 1 }}"
    assert tokenizer.leading_tokens == ()
    assert tokenizer.decode([ids["<s>"], *tokenizer.encode_text("é")]) == "<s>é"


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path: Path):
    plain = tokenizers.Tokenizer.from_str(tiny_definition())
    plain.enable_truncation(3)
    plain.enable_padding(length=40)
    folder = save_tokenizer(tmp_path, plain.to_str())
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.backend.encode(SAMPLE).ids == tiny_tokenizer().backend.encode(SAMPLE).ids
    assert tokenizer.encode_text(SAMPLE) == tiny_tokenizer().encode_text(SAMPLE)


def test_the_fingerprint_tells_tokenizers_apart_and_not_their_formatting(tmp_path: Path):
    definition = json.loads(tiny_definition())
    settings = {"eos_token": "<|end_of_text|>"}
    one = load_tokenizer(str(save_tokenizer(tmp_path / "one", json.dumps(definition), **settings)))
    same = load_tokenizer(
        str(save_tokenizer(tmp_path / "same", json.dumps(definition, indent=1), **settings))
    )
    assert one.fingerprint == same.fingerprint
    definition["added_tokens"][0]["rstrip"] = True
    other = load_tokenizer(str(save_tokenizer(tmp_path / "other", json.dumps(definition), **settings)))
    unnamed = load_tokenizer(str(save_tokenizer(tmp_path / "unnamed", tiny_definition())))
    assert len({one.fingerprint, other.fingerprint, unnamed.fingerprint}) == 3


def test_a_tokenizer_of_transformers_is_taken_over_as_it_is():
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tiny_definition()),
        eos_token="<|end_of_text|>",
        pad_token="<s>",
        chat_template="{{ 1 }}",
    )
    fast.add_tokens(["<new>"], special_tokens=True)
    tokenizer = Tokenizer.from_transformers(fast)
    assert tokenizer.control_tokens["<new>"] == fast.convert_tokens_to_ids("<new>")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (fast.eos_token_id, fast.pad_token_id)
    assert (tokenizer.folder, tokenizer.chat_template) == (None, "{{ 1 }}")
    assert tokenizer.vocab_size == len(fast)
    assert tokenizer.encode_text(SAMPLE) == fast(SAMPLE, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_written_in_python_is_refused():
    with pytest.raises(ConfigError) as caught:
        Tokenizer.from_transformers(object())
    assert message_of(caught) == (
        "tokenizer: a object has no backend of the tokenizers library; "
        "pass a fast tokenizer, or the folder of one"
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "mistral_v3", "olmo_neox"])
def test_tokenizers_of_others_give_the_ids_of_transformers(shared: Path, family: str):
    from transformers import AutoTokenizer

    folder = shared / "tokenizers" / family
    reference = AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    for text in (SAMPLE, "  two  spaces\t\n", "日本語 naïve", ""):
        assert tokenizer.encode_text(text) == reference(text, add_special_tokens=False)["input_ids"]
    for token, token_id in tokenizer.control_tokens.items():
        text = f"a {token} b"
        token_ids = tokenizer.encode_text(text)
        assert token_id not in token_ids
        assert tokenizer.decode(token_ids) == text
    assert tokenizer.vocab_size == len(reference)
    assert tokenizer.eos_token_id == reference.eos_token_id
    leading = [tokenizer.control_tokens[token] for token in tokenizer.leading_tokens]
    assert reference("a")["input_ids"] == [*leading, *tokenizer.encode_text("a")]
