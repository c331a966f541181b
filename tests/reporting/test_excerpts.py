"""An excerpt shows the first targets of a document and what stands before them, and says where it is cut."""

import numpy as np
import pytest
from tests.small_tokenizer import write_small_tokenizer

from finetooth.data.records import Document, Origin
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from finetooth.reporting.excerpts import excerpt_data, excerpt_view


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_small_tokenizer(folder)
    return load_tokenizer(str(folder), place="model.path")


def document(tokenizer: Tokenizer, text: str, *, targets: slice) -> Document:
    token_ids = np.array(tokenizer.encode_text(text), np.int32)
    loss_weights = np.zeros(len(token_ids), np.float32)
    loss_weights[targets] = 1
    return Document(token_ids, loss_weights, targets.start, Origin("a.jsonl", 3))


def test_a_short_document_is_shown_whole(tokenizer: Tokenizer):
    assert excerpt_view(document(tokenizer, "abc", targets=slice(2, 3)), tokenizer).plain == "ab⟦c⟧"


def test_a_long_one_is_cut_on_both_sides(tokenizer: Tokenizer):
    long = document(tokenizer, "z" * 300, targets=slice(100, 300))
    assert excerpt_view(long, tokenizer).plain == f"… {'z' * 60}⟦{'z' * 60}⟧ …"
    data = excerpt_data(long, tokenizer)
    assert (data["origin"], data["tokens"], data["targets"]) == ("a.jsonl:3", 300, 200)
    assert "".join(text for text, weight in data["pieces"] if weight) == "z" * 60  # type: ignore[union-attr]
