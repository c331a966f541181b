"""YAML is read strictly, with lines, and nothing in it can run or grow."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.config.yaml_lines import BROKEN, Entry, Mistake, Unreadable, read_mapping, read_value


def test_entries_know_their_lines():
    entries, mistakes = read_mapping("# note\nmodel:\n  path: base\n\noutput_dir: run\n")
    assert mistakes == []
    assert entries == [
        Entry("model", 2, {"path": "base"}, [Entry("path", 3, "base", None)]),
        Entry("output_dir", 5, "run", None),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2e-05", 2e-5),
        ("1", 1),
        ("010", 10),
        ("0x10", 16),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("'1'", "1"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: no}}", {"a": {"b": "no"}}),
    ],
)
def test_yaml_1_2_decides_what_a_scalar_is(text: str, value: object):
    assert read_mapping(f"key: {text}\n")[0][0].value == value
    assert read_value(text) == value


@pytest.mark.parametrize("text", ["a: b", "a # b", "&a", "*a", "!tag x", "- x", "%x", "=", "<<"])
def test_a_plain_override_is_text_as_it_stands(text: str):
    assert read_value(text) == text


# JSON writes control characters and those above U+FFFF in ways that YAML reads otherwise.
SHARED_TEXT = st.text(
    st.characters(codec="utf-8", max_codepoint=0xD7FF, exclude_categories=["Cc", "Zl", "Zp"])
)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | SHARED_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(NESTED)
def test_json_values_are_read_as_the_standard_library_reads_them(value: object):
    written = json.dumps({"key": value}).replace("Infinity", ".inf")
    assert [entry.value for entry in read_mapping(written)[0]] == [value]


def unreadable(text: str) -> Mistake:
    with pytest.raises(Unreadable) as caught:
        read_mapping(text)
    return caught.value.mistake


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", Mistake(0, "empty", "write at least model.path, data.train and output_dir")),
        ("# nothing\n", Mistake(0, "empty", "write at least model.path, data.train and output_dir")),
        (
            "- a\n",
            Mistake(
                0,
                "holds a list, no `key: value` lines",
                "write sections such as `data:` with their keys below",
            ),
        ),
        (
            "word\n",
            Mistake(
                0,
                "holds a single value, no `key: value` lines",
                "write sections such as `data:` with their keys below",
            ),
        ),
        (
            "a: 1\nb: [1, 2\n",
            Mistake(
                3,
                "not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
                "mend this line or the one above",
            ),
        ),
        (
            "a: 1\n---\nb: 2\n",
            Mistake(
                2,
                "not YAML: expected a single document in the stream, but found another document",
                "mend this line or the one above",
            ),
        ),
        (
            "a: \x00\n",
            Mistake(
                0,
                "not YAML: unacceptable character #x0000: special characters are not allowed",
                "save the file as plain text in UTF-8",
            ),
        ),
        (
            "%YAML 1.1\n---\na: yes\n",
            Mistake(1, "the directive '%YAML 1.1'", "leave it out: YAML 1.2 is read"),
        ),
        ("[" * 5000, Mistake(0, "nested deeper than 20 levels", "write a flatter file")),
    ],
)
def test_a_text_that_is_no_mapping_is_refused(text: str, mistake: Mistake):
    assert unreadable(text) == mistake


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("a: 1\na: 2\n", Mistake(2, "a: stands twice, first in line 1", "keep one of them")),
        ("5: 1\n", Mistake(1, "a key that is not text", "write the key as text, in quotes if need be")),
        ("? [x]\n: 1\n", Mistake(1, "a key that is not text", "write the key as text, in quotes if need be")),
        ("a: &x 1\nb: *x\n", Mistake(1, "the anchor &x", "write the value out at each place")),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            Mistake(1, "the tag 'python/object/apply:os.system'", "write a plain value without a tag"),
        ),
        ("a: !own 1\n", Mistake(1, "the tag '!own'", "write a plain value without a tag")),
        ("a: !!set {x}\n", Mistake(1, "the tag 'set'", "write a plain value without a tag")),
        ("a: !!int x\n", Mistake(1, "'x' cannot be read as int", "write a plain value")),
        ("a: !!bool x\n", Mistake(1, "'x' cannot be read as bool", "write a plain value")),
        (f"a: {'1' * 5000}\n", Mistake(1, f"'{'1' * 40}' cannot be read as int", "write a plain value")),
        (f"a: {'[' * 25}{']' * 25}\n", Mistake(1, "nested deeper than 20 levels", "write a flatter value")),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, mistake: Mistake):
    assert read_mapping(text)[1] == [mistake]


def test_a_mistaken_value_is_marked_and_its_neighbours_are_read():
    entries, _ = read_mapping("a: !own 1\nb: {c: [!own 1], d: 2}\ne: 3\n")
    assert [entry.value for entry in entries] == [BROKEN, BROKEN, 3]
    assert [entry.value for entry in entries[1].entries or []] == [BROKEN, 2]


def test_a_file_of_aliases_does_not_grow():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    entries, mistakes = read_mapping("\n".join(lines))
    assert len(mistakes) == 30
    assert all(entry.value is BROKEN for entry in entries)


def test_a_mapping_that_holds_itself_is_refused():
    assert read_mapping("a: &a {b: *a}\n")[1] == [
        Mistake(1, "the anchor &a", "write the value out at each place")
    ]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_read_or_refused(text: str):
    for read in (read_mapping, read_value):
        with contextlib.suppress(Unreadable):
            read(text)
