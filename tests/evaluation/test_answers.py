"""What counts as an answer, and which answers are equal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.evaluation.answers import extract_answer, is_exact_match


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("2+2\n<answer> 4 \n</answer> so", "4"),
        ("<answer>3</answer> no, <answer>4</answer>", "4"),
        ("<answer></answer>", ""),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("4", None),
        ("<answer>4", None),
        ("</answer>4<answer>", None),
        ("<answer>$1,072.00</answer>", "1072"),
        ("<answer>1,000,000</answer>", "1000000"),
        ("<answer>+7</answer>", "7"),
        ("<answer>-$3.50</answer>", "-3.5"),
        ("<answer>007</answer>", "7"),
        ("<answer>0.25</answer>", "0.25"),
        ("<answer>-0.0</answer>", "-0"),
        ("<answer>1,07</answer>", "1,07"),
        ("<answer>1.2.3</answer>", "1.2.3"),
        ("<answer>3 apples</answer>", "3 apples"),
        ("<answer>12%</answer>", "12%"),
    ],
)
def test_the_answer_in_a_tag(text: str, answer: str | None):
    assert extract_answer(text, "answer-tag") == answer


def test_a_plain_answer_is_the_whole_text_without_white_space_around():
    assert extract_answer(" The capital of Peru is Lima.\n", "plain") == "The capital of Peru is Lima."


@pytest.mark.parametrize(
    ("generated", "reference", "equal"),
    [
        ("so <answer>18.0</answer>", "<answer>18</answer>", True),
        ("<answer>$1,800</answer>", "<answer>1800</answer>", True),
        ("<answer>18</answer>", "<answer>81</answer>", False),
        ("<answer>0.5</answer>", "<answer>5</answer>", False),
        ("18", "<answer>18</answer>", False),
        ("nothing", "nothing either", False),
        ("<answer>Lima</answer>", "<answer>lima</answer>", False),
    ],
)
def test_answers_in_tags_are_compared_as_numbers_where_they_are_numbers(
    generated: str, reference: str, equal: bool
):
    assert is_exact_match(generated, reference, "answer-tag") is equal


def test_plain_answers_are_compared_whole():
    assert is_exact_match("Lima.\n", "Lima.", "plain")
    assert not is_exact_match("It is Lima.", "Lima.", "plain")


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "{}.00", "{:,}.0", "${:,}"]))
def test_a_whole_number_is_the_same_however_it_is_written(number: int, form: str):
    written = form.format(number).replace("$-", "-$")
    assert extract_answer(f"<answer>{written}</answer>", "answer-tag") == str(number)


@given(
    st.decimals(min_value=-9999, max_value=9999, places=3),
    st.decimals(min_value=-9999, max_value=9999, places=3),
)
def test_two_numbers_are_equal_only_if_their_values_are(one: object, other: object):
    texts = [f"<answer>{value}</answer>" for value in (one, other)]
    assert is_exact_match(texts[0], texts[0], "answer-tag")
    assert is_exact_match(*texts, "answer-tag") == (one == other)
