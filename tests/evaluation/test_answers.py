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


@pytest.mark.parametrize(
    ("extractor", "text", "answer"),
    [
        ("gsm8k", "48/2 = 24\n#### 72", "72"),
        ("gsm8k", "#### 1,072\nand so on", "1072"),
        ("gsm8k", "#### 3\nno:\n####$4.50", "4.5"),
        ("gsm8k", "#### -12", "-12"),
        ("gsm8k", "####", ""),
        ("gsm8k", "#### 72 apples", "72 apples"),
        ("gsm8k", "### 72", None),
        ("last-line", "So it is\n\n Lima \n\n", "Lima"),
        ("last-line", "$1,000.0", "1000"),
        ("last-line", " \n\n", None),
        ("last-line", "", None),
        (r"regex:answer is (\S+)", "The answer is 3, no, the answer is 1,000", "1000"),
        (r"regex:\d+", "3 and 4", "4"),
        (r"regex:(?i)YES|no", "no, Yes!", "Yes"),
        (r"regex:a(b)?", "ab a", None),
        (r"regex:(a)(b)", "ab", "a"),
        (r"regex:: (.)", "x: y", "y"),
        (r"regex:(?s)<a>(.*)</a>", "<a>\n1\n</a>", "1"),
        (r"regex:\d+", "none", None),
        ("json:city", '{"city": " Lima "}', "Lima"),
        ("json:city", 'So:\n```json\n{"city": "Lima", "n": {"city": "Rome"}}\n```', "Lima"),
        ("json:city", '{"city": "Rome"} no {"city": "Lima"}', "Lima"),
        ("json:city", '{"city": "Rome"} no {"town": "Lima"}', None),
        ("json:n", '{"n": 18.0}', "18"),
        ("json:n", '{"n": "$1,800"}', "1800"),
        ("json:n", '{"n": [1, {"b": 2, "a": null}]}', '[1, {"a": null, "b": 2}]'),
        ("json:n", '{"n": true}', "true"),
        ("json:n", '{"n": null}', None),
        ("json:n", '{{"n": 3}', "3"),
        ("json:n", '{"n": 3', None),
        ("json:n", '[{"n": 3}]', "3"),
        ("json:a b:c", '{"a b:c": "d"}', "d"),
        ("json:n", '{"n":' * 5000, None),
    ],
)
def test_the_answer_of_other_forms(extractor: str, text: str, answer: str | None):
    assert extract_answer(text, extractor) == answer


@pytest.mark.parametrize(
    ("extractor", "generated", "reference", "equal"),
    [
        ("gsm8k", "I think\n#### 1072", "48+1024\n#### 1,072", True),
        ("gsm8k", "I think\n#### 1073", "48+1024\n#### 1,072", False),
        ("gsm8k", "It is 1072", "48+1024\n#### 1,072", False),
        ("last-line", "First.\n72", "Other.\n72.0", True),
        ("last-line", "72\nSo there.", "72", False),
        (r"regex:answer: (\w)", "answer: B", "Well, answer: B", True),
        (r"regex:answer: (\w)", "B", "answer: B", False),
        (r"regex:answer: (\w)", "B", "B", False),
        ("json:n", '{"n": {"a": 1, "b": 2}}', '{"n": {"b": 2, "a": 1}}', True),
        ("json:n", '{"n": [1, 2]}', '{"n": [2, 1]}', False),
        ("json:n", "{}", "{}", False),
    ],
)
def test_answers_of_other_forms_are_compared(extractor: str, generated: str, reference: str, equal: bool):
    """Equal answers that are no answers at all, and other answers, are the negative controls."""
    assert is_exact_match(generated, reference, extractor) is equal
