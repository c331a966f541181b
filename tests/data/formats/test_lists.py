"""Turns in plain lists become conversations."""

from typing import Any

import pytest
from tests.records import messages_of, refusal, unread

from finetooth.data.formats.reading import Format
from finetooth.data.records import Message

SAID = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))


@pytest.mark.parametrize("name", ["data", "conversations"])
def test_a_list_begins_with_a_question(name: str):
    assert messages_of({name: ["a", "b", "c", "d"]}) == SAID
    assert messages_of({name: ["a", "b", "c"]}) == SAID[:3]
    assert unread({name: ["a", "b"], "id": "0"}) == ["id"]


def test_two_lists_and_a_system_text():
    fields = {"User": ["a", "c"], "Assistant": ["b", "d"]}
    for none in ({}, {"Template": ["CUSTOM"]}, {"Template": "CUSTOM"}, {"Template": []}, {"Template": None}):
        assert messages_of({**fields, **none}) == SAID
    for own in (["Be short."], "Be short."):
        assert messages_of({**fields, "Template": own}) == (Message("system", "Be short."), *SAID)
    assert unread({**fields, "Template": ["CUSTOM"], "source": "web"}) == ["source"]


@pytest.mark.parametrize(
    ("fields", "format", "expected"),
    [
        ({"data": ["a"]}, "ultrachat", "no assistant turn; add an answer or remove the record"),
        ({"data": ["a", ""]}, "ultrachat", "empty answer; write an answer or remove the record"),
        ({"data": ["a", 4]}, "ultrachat", "data[1] is a number instead of a text; write it as a text"),
        (
            {"data": "a"},
            "ultrachat",
            "'data' is a text and no JSON list (broken JSON at character 1: expecting value); "
            "write it as a list",
        ),
        (
            {"User": ["a", "b"], "Assistant": ["c"]},
            "turns",
            "2 texts in 'User' but 1 in 'Assistant'; give every question its answer",
        ),
        ({"User": [], "Assistant": []}, "turns", "no assistant turn; add an answer or remove the record"),
        (
            {"User": ["a"], "Assistant": ["b"], "Template": ["c", "d"]},
            "turns",
            "2 texts in 'Template'; write one system text, or CUSTOM for none",
        ),
        (
            {"User": ["a"], "Assistant": ["b"], "Template": 1},
            "turns",
            "'Template' is a number instead of a text; write it as a text",
        ),
        (
            {"User": ["a"], "Assistant": ["b"], "Template": "c", "system": "d"},
            "turns",
            "both a field 'system' and a system message; keep one of them",
        ),
    ],
)
def test_each_refusal_in_full(fields: dict[str, Any], format: Format, expected: str):
    assert refusal(fields, format) == expected
