"""Traced text is the text it would be untraced, and every place it names is true."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.data.templates.provenance import (
    GENERATION_BEGIN,
    GENERATION_END,
    UNKNOWN,
    UNPLACED,
    Traced,
    generation_spans,
    joined,
    retold,
    source_within,
)

FIELD = (3, "content")
TEXT = st.text(alphabet="ab \n,é", max_size=8)
NUMBER = st.integers(-9, 9)

OPERATIONS: dict[str, Callable[[str, str, int], object]] = {
    "add": lambda text, other, _: text + other,
    "add to": lambda text, other, _: other + text,
    "index": lambda text, _, number: text[number] if -len(text) <= number < len(text) else "",
    "slice": lambda text, other, number: text[number : len(other)],
    "step": lambda text, _, number: text[:: number or -1],
    "strip": lambda text, other, number: text.strip(other or None) if number > 0 else text.strip(),
    "lstrip": lambda text, other, _: text.lstrip(other),
    "rstrip": lambda text, other, _: text.rstrip(other),
    "removeprefix": lambda text, other, _: text.removeprefix(other),
    "removesuffix": lambda text, other, _: text.removesuffix(other),
    "split at blanks": lambda text, _, number: text.split(None, number),
    "split": lambda text, other, number: text.split(other or ",", number),
    "rsplit": lambda text, other, number: text.rsplit(other or ",", number),
    "partition": lambda text, other, _: text.partition(other or ","),
    "rpartition": lambda text, other, _: text.rpartition(other or ","),
    "iterate": lambda text, _, __: list(text),
    "upper": lambda text, _, __: text.upper(),
    "replace": lambda text, other, _: text.replace("a", other),
    "join": lambda text, other, _: text.join([other, other]),
    "format": lambda text, _, __: text.format(1),
    "splitlines": lambda text, _, __: text.splitlines(),
    "repeat": lambda text, _, number: text * number,
    "reversed": lambda text, _, __: "".join(reversed(text)),
}
KEEP_THE_PLACE = tuple(name for name in OPERATIONS if name not in ("step", "reversed"))[:15]


def message(text: str) -> Traced:
    return Traced(text, [(len(text), FIELD, 0)])


def parts_of(value: object) -> list[str]:
    return list(value) if isinstance(value, list | tuple) else [str(value)]


@pytest.mark.parametrize("name", OPERATIONS)
@given(text=TEXT, other=TEXT, number=NUMBER)
def test_every_operation_gives_the_plain_result_with_true_places(
    name: str, text: str, other: str, number: int
):
    operation = OPERATIONS[name]
    traced = joined([message(text[:3]), "ab", message(text)])
    plain = operation("".join((text[:3], "ab", text)), other, number)
    result = operation(traced, other, number)
    assert result == plain
    for part in parts_of(result):
        if not isinstance(part, Traced):
            assert name == "reversed" or part in (other, "", ",") or part == other.strip()
            continue
        assert sum(length for length, _, _ in part.runs) == len(part)
        position = 0
        for length, source, start in part.runs:
            if source == FIELD and start != UNPLACED:
                assert text[start : start + length] == str.__getitem__(
                    part, slice(position, position + length)
                )
            position += length


@pytest.mark.parametrize("name", KEEP_THE_PLACE)
@given(text=TEXT.filter(bool), other=TEXT, number=NUMBER)
def test_cutting_and_joining_lose_no_place(name: str, text: str, other: str, number: int):
    for part in parts_of(OPERATIONS[name](message(text), other, number)):
        assert not isinstance(part, Traced) or all(start != UNPLACED for _, _, start in part.runs)


def test_an_index_outside_is_an_error_as_in_any_text():
    with pytest.raises(IndexError) as caught:
        message("ab")[2]
    assert str(caught.value) == "string index out of range"


def test_other_operations_keep_the_source_without_the_place():
    assert message("ab").upper().runs == ((2, FIELD, UNPLACED),)  # pyright: ignore[reportAttributeAccessIssue]
    assert Traced("ab").runs == ((2, UNKNOWN, UNPLACED),)
    assert not isinstance(joined(["ab"]).upper(), Traced), "what the template wrote stays the template's"


def test_text_made_from_messages_counts_as_message_text():
    assert retold("AB", [{"x": (message("ab"),)}]).runs == ((2, FIELD, UNPLACED),)
    assert retold("AB", object()).runs == ((2, UNKNOWN, UNPLACED),)
    assert retold("AB", "ab", 1, None, ["c"], {"d": 2.5}) == "AB"
    assert not isinstance(retold("AB", "ab"), Traced)
    assert source_within({message("key"): 1}) == FIELD
    assert source_within(b"bytes") == UNKNOWN


def generated(text: str) -> Traced:
    return joined([Traced("", [GENERATION_BEGIN]), text, Traced("", [GENERATION_END])])


@given(st.lists(st.tuples(TEXT, st.booleans()), max_size=6), st.data())
def test_what_generation_blocks_wrote_is_known_after_every_cut(
    pieces: list[tuple[str, bool]], data: st.DataObject
):
    text = joined([generated(piece) if inside else message(piece) for piece, inside in pieces])
    flags = [inside for piece, inside in pieces for _ in piece]
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    part = text[begin:end]
    assert isinstance(part, Traced)
    found = [
        any(first <= place < last for first, last in generation_spans(part)) for place in range(len(part))
    ]
    assert found == flags[begin:end]


def test_a_generation_block_within_another_counts_as_one():
    text = joined(["<", generated("a" + generated("b") + "c"), ">"])
    assert generation_spans(text) == ((1, 4),)
    assert generation_spans(joined(["abc"])) == ()
