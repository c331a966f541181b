"""The mask view shows every character of a document and which of them are trained."""

from io import StringIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.small_tokenizer import write_small_tokenizer

from finetooth.data.records import Document, Origin
from finetooth.data.tokenizer import Tokenizer, load_tokenizer
from finetooth.reporting.mask_view import mask_view


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_small_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def document(token_ids: list[int], targets: list[int]) -> Document:
    weights = np.zeros(len(token_ids), np.float32)
    weights[targets] = 1
    return Document(np.array(token_ids, np.int32), weights, 1, Origin("t", 1))


def test_targets_stand_in_brackets_and_nothing_can_drive_the_terminal(tokenizer: Tokenizer):
    context = tokenizer.backend.encode("<|im_start|>user\nTwo? \x1b[31m⟦é\u202e<|im_end|>\n").ids
    answer = tokenizer.backend.encode("[bold]four[/bold]\t<|im_end|>").ids
    newline = tokenizer.backend.encode("\n").ids
    targets = list(range(len(context), len(context) + len(answer)))
    view = mask_view(document(context + answer + newline, targets), tokenizer)
    assert view.plain == (
        "<|im_start|>user↵\nTwo? \\x1b[31m\\u27e6é\\u202e<|im_end|>↵\n⟦[bold]four[/bold]\\t<|im_end|>⟧↵\n"
    )
    plain, coloured = StringIO(), StringIO()
    Console(file=plain, width=200).print(view)
    assert plain.getvalue() == view.plain + "\n"
    Console(file=coloured, width=200, force_terminal=True, color_system="standard").print(view)
    assert "\x1b[1;32m⟦[bold]four" in coloured.getvalue()


@settings(deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="⟦⟧"), min_size=1),
    data=st.data(),
)
def test_every_character_is_shown_once(tokenizer: Tokenizer, text: str, data: st.DataObject):
    token_ids = tokenizer.backend.encode(text).ids
    targets = data.draw(st.sets(st.integers(1, len(token_ids))))
    whole = document(token_ids, [t for t in targets if t < len(token_ids)])
    shown = mask_view(whole, tokenizer).plain.replace("⟦", "").replace("⟧", "")
    # where a mask cuts a character in two, its halves show as replacement characters
    assert shown == text or "\ufffd" in shown


def test_a_first_space_is_not_lost(shared):
    sentencepiece = load_tokenizer(str(shared / "tokenizers/mistral_v3"))
    ids = sentencepiece.backend.encode("Two and two", add_special_tokens=False).ids
    assert mask_view(document(ids, [1]), sentencepiece).plain == "Two⟦ and⟧ two"
