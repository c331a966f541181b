"""Pieces show every token of a document, and joined they are its text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_tokenizer import write_small_tokenizer

from finetooth.data.pieces import document_data, pieces_of
from finetooth.data.records import Document, Origin
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def document(token_ids: list[int], loss_weights: list[float] | None = None) -> Document:
    weights = np.zeros(len(token_ids)) if loss_weights is None else np.array(loss_weights)
    return Document(np.array(token_ids, np.int32), weights.astype(np.float32), 0, Origin("t", 1))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_joined_they_are_the_text(tokenizer: Tokenizer, text: str):
    token_ids = tokenizer.backend.encode(text).ids
    pieces = list(pieces_of(document(token_ids), tokenizer))
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(token_ids) == text
    assert [token_id for piece in pieces for token_id in piece.token_ids] == token_ids
    assert all(
        piece.token_ids == tuple(token_ids[piece.position :][: len(piece.token_ids)]) for piece in pieces
    )


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), data=st.data())
def test_no_piece_has_two_loss_weights(tokenizer: Tokenizer, text: str, data: st.DataObject):
    token_ids = tokenizer.backend.encode(text).ids
    some = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(token_ids), max_size=len(token_ids))
    weights = data.draw(some)
    pieces = list(pieces_of(document(token_ids, weights), tokenizer))
    assert [piece.loss_weight for piece in pieces for _ in piece.token_ids] == weights
    assert [token_id for piece in pieces for token_id in piece.token_ids] == token_ids


def test_tokens_that_write_one_character_together_are_one_piece(tokenizer: Tokenizer):
    token_ids = tokenizer.backend.encode("a日b").ids
    pieces = list(pieces_of(document(token_ids), tokenizer))
    assert [(piece.text, len(piece.token_ids)) for piece in pieces] == [("a", 1), ("日", 3), ("b", 1)]
    halves = list(pieces_of(document(token_ids, [0, 0, 1, 1, 0]), tokenizer))
    assert [piece.text for piece in halves] == ["a", "\ufffd", "\ufffd\ufffd", "b"]


def test_bytes_that_never_become_a_character_are_shown_all_the_same(tokenizer: Tokenizer):
    lone = tokenizer.backend.encode("日").ids[1]
    pieces = list(pieces_of(document([lone] * 40), tokenizer))
    assert "".join(piece.text for piece in pieces) == "\ufffd" * 40
    assert sum(len(piece.token_ids) for piece in pieces) == 40


@pytest.mark.parametrize("name", ["qwen3", "mistral_v3", "olmo_neox"])
def test_of_real_tokenizers_no_space_and_no_character_is_lost(shared, name: str):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / name))
    text = "Two and  two\n\n   is four. naïve 日本語 👩‍👩‍👧 ḧ\t→ end" * 3
    control = list(tokenizer.control_tokens.values())[:3]
    token_ids = [*control, *tokenizer.backend.encode(text, add_special_tokens=False).ids, *control]
    pieces = list(pieces_of(document(token_ids), tokenizer))
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(token_ids)
    middle = pieces[len(pieces) // 2].position
    end = pieces_of(document(token_ids), tokenizer, start=middle)
    beginning = pieces_of(document(token_ids), tokenizer, end=middle)
    assert [piece.text for piece in (*beginning, *end)] == [piece.text for piece in pieces]


def test_json_holds_every_token_with_its_text(tokenizer: Tokenizer):
    token_ids = tokenizer.backend.encode("a日").ids
    data = document_data(document(token_ids, [0, 1, 1, 1]), tokenizer)
    assert data == {
        "origin": "t:1",
        "prompt_length": 0,
        "token_ids": token_ids,
        "loss_weights": [0, 1, 1, 1],
        "pieces": [["a", 1], ["日", 3]],
    }
