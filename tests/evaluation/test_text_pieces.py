"""Pieces cut no character, come as soon as they are certain, and together are the whole text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chat import tiny_tokenizer, tiny_unigram
from tests.small_tokenizer import write_small_tokenizer
from tokenizers import Tokenizer, decoders, models

from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.evaluation.text_pieces import TextPieces

UNIGRAM = Tokenizer.from_str(tiny_unigram())


def unigram_text(token_ids: list[int]) -> str:
    return UNIGRAM.decode(token_ids, skip_special_tokens=False)


def pieces_of(decode: object, token_ids: list[int]) -> list[str]:
    pieces = TextPieces(decode)  # type: ignore[arg-type]
    return [*map(pieces.add, token_ids), pieces.rest()]


@given(st.lists(st.integers(0, 300)))
def test_any_tokens_of_bytes_give_their_whole_text(token_ids: list[int]):
    decode = tiny_tokenizer().decode
    pieces = pieces_of(decode, token_ids)
    assert "".join(pieces) == decode(token_ids)
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


@given(st.text())
def test_no_character_is_cut(text: str):
    decode = tiny_tokenizer().decode
    token_ids = tiny_tokenizer().encode_text(text)
    for number, piece in enumerate(pieces_of(decode, token_ids)[:-1], start=1):
        assert decode(token_ids[:number]).count("\ufffd") > 0 or piece in text
        assert "\ufffd" not in piece or "\ufffd" in text


def test_a_piece_comes_with_the_token_that_makes_it_certain(tmp_path: Path):
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path))
    token_ids = tokenizer.encode_text("a 日😀b")
    assert len(token_ids) == 2 + 3 + 4 + 1
    pieces = pieces_of(tokenizer.decode, token_ids)
    assert pieces == ["a", " ", "", "", "日", "", "", "", "😀", "b", ""]


@given(st.lists(st.integers(0, UNIGRAM.get_vocab_size() - 1)))
def test_spaces_that_a_decoder_takes_from_the_start_only_are_kept(token_ids: list[int]):
    assert "".join(pieces_of(unigram_text, token_ids)) == unigram_text(token_ids)


def test_bytes_that_wait_for_others_come_at_the_end():
    tokenizer = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, []))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert pieces_of(tokenizer.decode, list("né".encode())) == ["n", "", "é", ""]
    assert pieces_of(tokenizer.decode, list("é".encode()[:1])) == ["", "\ufffd"]


@pytest.mark.parametrize("text", ["", "plain"])
def test_bytes_alone_would_be_cut(text: str):
    """Negative control: decoded token by token, a character of three bytes is none."""
    decode = tiny_tokenizer().decode
    token_ids = tiny_tokenizer().encode_text(f"{text}日")
    assert "".join(decode([token_id]) for token_id in token_ids) != f"{text}日"
