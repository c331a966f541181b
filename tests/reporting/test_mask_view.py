"""The mask view shows every character of a document and which of them are trained."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base.terminal import make_visible
from finetooth.data.records import Document, Origin
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from finetooth.reporting.mask_view import mask_view, token_list


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
    text=st.text(st.characters(exclude_characters="⟦⟧↵").filter(lambda c: make_visible(c) == c), min_size=1),
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


def test_a_weight_other_than_1_stands_in_brackets_of_its_own(tokenizer: Tokenizer):
    ids = tokenizer.backend.encode("four").ids
    ones = np.zeros(3 * len(ids), np.float32)
    ones[len(ids) : 2 * len(ids)], ones[2 * len(ids) :] = 0.25, 1
    view = mask_view(Document(np.array(ids * 3, np.int32), ones, 1, Origin("t", 1)), tokenizer)
    assert view.plain == "four⟦⟦0.25⟧four⟧⟦four⟧"


def test_on_demand_every_token_has_a_line(tokenizer: Tokenizer):
    ids = tokenizer.backend.encode("<|im_start|>日 four\n\u202e").ids
    weights = np.zeros(len(ids), np.float32)
    weights[-4:] = 1
    lines = token_list(Document(np.array(ids, np.int32), weights, 1, Origin("t", 1)), tokenizer)
    shown = [(line.plain[:6].strip(), *line.plain[8:].split()) for line in lines]
    assert shown[0] == ("0", str(ids[0]), "<|im_start|>")
    assert shown[1] == ("1", "+".join(map(str, ids[1:4])), "日")
    assert shown[-2] == (str(len(ids) - 4), str(ids[-4]), "1", "↵")
    assert shown[-1] == (str(len(ids) - 3), "+".join(map(str, ids[-3:])), "1", "\\u202e")
    assert "".join(line[-1] for line in shown[2:-2]) == "␣four"


def test_a_very_long_token_is_cut_and_says_so(tmp_path):
    definition = json.loads((Path(write_small_tokenizer(tmp_path)) / "tokenizer.json").read_text())
    definition["added_tokens"][1]["content"] = "long" * 100
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = load_tokenizer(str(tmp_path))
    [line] = token_list(document([definition["added_tokens"][1]["id"]], []), tokenizer)
    assert line.plain.endswith("long… (400 characters)")
    assert len(line.plain) < 110
