"""Given tokens keep their targets, and what does not add up is refused; plain text is taken as it stands."""

from typing import Any

import numpy as np
import pytest
from tests.records import ORIGIN, read, refusal, unread

from finetooth.data.records import GivenTokens, PlainText


def given(**fields: Any) -> tuple[list[int], list[float]]:
    tokens = read(fields)
    assert isinstance(tokens, GivenTokens)
    assert (tokens.token_ids.dtype, tokens.loss_weights.dtype) == (np.int32, np.float32)
    return tokens.token_ids.tolist(), tokens.loss_weights.tolist()


IDS = [7, 3, 9, 4, 2]
LABELS = [-100, -100, -100, 4, 2]
MASK = [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": LABELS},
        {"loss_mask": MASK},
        {"completion_mask": [False, False, False, True, True]},
        {"assistant_masks": [0.0, 0.0, 0.0, 1.0, 1.0]},
        {"labels": LABELS, "loss_mask": MASK, "attention_mask": [1] * 5},
        {"labels": "[-100, -100, -100, 4, 2]", "loss_mask": []},
    ],
)
def test_labels_and_masks_say_which_tokens_are_trained(fields: dict[str, Any]):
    assert given(input_ids=IDS, **fields) == (IDS, MASK)


def test_nothing_predicts_the_first_token():
    assert given(input_ids=IDS, labels=IDS) == (IDS, [0, 1, 1, 1, 1])
    assert given(input_ids=IDS, labels=IDS, loss_mask=[0, 1, 1, 1, 1]) == (IDS, [0, 1, 1, 1, 1])


def test_padding_is_cut_off_where_the_attention_mask_says_so():
    right = {"input_ids": [*IDS, 0, 0], "labels": [*LABELS, -100, -100]}
    assert given(**right, attention_mask=[1] * 5 + [0] * 2, position_ids=[0, 1, 2, 3, 4, 1, 1]) == (IDS, MASK)
    assert given(**right) == ([*IDS, 0, 0], [*MASK, 0, 0])
    left = {"input_ids": [0, *IDS], "labels": [-100, *IDS], "attention_mask": [0] + [1] * 5}
    assert given(**left) == (IDS, [0, 1, 1, 1, 1])


def test_what_is_passed_over_is_named():
    assert given(input_ids=IDS, labels=LABELS, seq_lengths=[5]) == (IDS, MASK)
    fields = {"input_ids": IDS, "labels": LABELS, "token_type_ids": [0] * 5, "text": "7 3 9 4 2"}
    assert unread(fields) == ["text", "token_type_ids"]


LARGEST = 2**31 - 1
PLACE = "write each label at the place of its own token"
ONE_DOCUMENT = "write one document per record; finetooth packs them itself"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"input_ids": []}, "no tokens; remove the record"),
        (
            {},
            "neither 'labels' nor 'loss_mask'; add one of them, so that it is known which tokens are trained",
        ),
        ({"input_ids": [1, True]}, f"input_ids[1] is True; write whole numbers from 0 to {LARGEST}"),
        ({"input_ids": [1, 2.0]}, f"input_ids[1] is 2.0; write whole numbers from 0 to {LARGEST}"),
        ({"input_ids": [-1]}, f"input_ids[0] is -1; write whole numbers from 0 to {LARGEST}"),
        ({"input_ids": [2**31]}, f"input_ids[0] is 2147483648; write whole numbers from 0 to {LARGEST}"),
        (
            {"labels": [*LABELS, 2]},
            "'labels' has 6 entries for 5 tokens; give every token its own",
        ),
        (
            {"labels": [-100, -100, 9, 5, 2]},
            "'labels' holds 5 at place 3, where the token is 4; "
            "write the token itself, or -100 where nothing is trained",
        ),
        (
            {"labels": [-100, -100, 4, 2, -100]},
            f"'labels' is shifted by one: it holds at place 2 the token of place 3; {PLACE}",
        ),
        (
            {"labels": [3, 9, 4, 2, 11]},
            f"'labels' is shifted by one: it holds at place 0 the token of place 1; {PLACE}",
        ),
        ({"loss_mask": [0, 0, 0, 1]}, "'loss_mask' has 4 entries for 5 tokens; give every token its own"),
        (
            {"loss_mask": [0, 0, 0, 1, 0.5]},
            "loss_mask[4] is 0.5; write 0 or 1 for every token, and one document per record",
        ),
        (
            {"attention_mask": [1, 1, 1, 2, 2], "labels": LABELS},
            "attention_mask[3] is 2; write 0 or 1 for every token, and one document per record",
        ),
        (
            {"labels": LABELS, "loss_mask": [0, 0, 1, 1, 1]},
            "'labels' and 'loss_mask' disagree at token 2; keep the one that is right",
        ),
        (
            {"labels": LABELS, "attention_mask": [1, 1, 1, 1, 0]},
            "a target where 'attention_mask' is 0; "
            "give padding the label -100, or correct the attention mask",
        ),
        (
            {"labels": LABELS, "attention_mask": [1, 0, 1, 1, 1]},
            "'attention_mask' is 0 between tokens; only padding at the ends can be left out",
        ),
        (
            {"labels": LABELS, "attention_mask": [0] * 5},
            "'attention_mask' is 0 everywhere; remove the record",
        ),
        (
            {"labels": LABELS, "position_ids": [0, 1, 0, 1, 2]},
            f"'position_ids' begin again at token 2: several documents in one row; {ONE_DOCUMENT}",
        ),
        (
            {"labels": LABELS, "seq_lengths": ["5"]},
            f"seq_lengths[0] is '5'; write whole numbers from 1 to {LARGEST}",
        ),
        (
            {"labels": LABELS, "seq_lengths": [2, 3]},
            f"'seq_lengths' names 2 documents in one row; {ONE_DOCUMENT}",
        ),
    ],
)
def test_each_refusal_in_full(fields: dict[str, Any], expected: str):
    assert refusal({"input_ids": IDS, **fields}, "tokens") == expected


def test_text_is_taken_as_it_stands():
    assert read({"text": " Once\n"}) == PlainText(" Once\n", ORIGIN)
    assert unread({"text": "a", "url": "b"}) == ["url"]
    assert refusal({"text": "\n "}, "text") == "empty text; write a text or remove the record"
    assert refusal({"text": ["a"]}, "text") == "'text' is a list instead of a text; write it as a text"
