"""Words for values and for what is allowed."""

import datetime

import pytest

from finetooth.config.wording import describe_choices, show_value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (3, "the number 3"),
        (1e-4, "the number 0.0001"),
        (float("-inf"), "a number that is not finite"),
        pytest.param(10**5000, "a number of thousands of digits", id="huge"),
        ("yes", "the text 'yes'"),
        ("", "empty text"),
        ("a\x1b[31m\ud800", "the text 'a\\x1b[31m\\ud800'"),
        ("x" * 100, "the text '" + "x" * 58 + "…"),
        ([1], "a list"),
        ({}, "a mapping"),
        (datetime.date(2024, 1, 1), "a value of type date"),
    ],
)
def test_a_value_is_shown_in_words(value: object, words: str):
    assert show_value(value) == words


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "a whole number at least 1"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "a number at least 0 and below 1"),
        ({"enum": ["a", "b", "c"], "type": "string"}, "a, b or c"),
        ({"anyOf": [{"const": "auto"}, {"type": "boolean"}]}, "auto, true or false"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null"),
        ({"type": "string", "pattern": "^c:[0-9]$", "examples": ["c:1"]}, "text such as c:1"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "a mapping whose values are text"),
        ({"type": "object", "additionalProperties": {"$ref": "#/x"}}, "a mapping"),
    ],
)
def test_what_is_allowed_is_described_in_words(schema: dict[str, object], words: str):
    assert describe_choices(schema) == words
