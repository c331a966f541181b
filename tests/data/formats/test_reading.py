"""The format of a source is settled once, fields may have other names, and nothing is lost in silence."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.records import ORIGIN, read

from finetooth.base.errors import ConfigError, DataError
from finetooth.config.sources import Format as FormatSetting
from finetooth.data.formats.reading import (
    FIELD_NAMES,
    BadRecord,
    Format,
    detect_format,
    is_prompt_response,
    settle_format,
    to_conversation,
    unread_fields,
)
from finetooth.data.records import Conversation, GivenTokens, Origin, PlainText, Record
from finetooth.data.sources.reading import BadLine, read_records

FORMATS: tuple[Format, ...] = get_args(Format)

CALL = {"name": "add", "arguments": {"a": 2, "b": ["x", {"y": "z"}]}}
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
    {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "I should add.",
        "tool_calls": [{"id": "c1", "type": "function", "function": CALL}],
    },
    {"role": "tool", "content": {"sum": ["four"]}, "name": "add", "tool_call_id": "c1"},
    {"role": "assistant", "content": "<think>So it is four.</think>Four.", "weight": 0.5},
]
TURNS = [
    {"from": "human", "value": "How many?"},
    {"from": "gpt", "value": "Let me see."},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": '{"sum": "four"}'},
    {"from": "gpt", "value": "Four."},
]
TREE = {
    "text": "How many?",
    "role": "prompter",
    "message_id": "m1",
    "replies": [
        {"text": "Three.", "role": "assistant", "rank": 1, "replies": [], "lang": "en"},
        {"text": "Four.", "role": "assistant", "rank": 0, "labels": {"spam": {"value": 0.1}}, "replies": []},
    ],
}
BESIDE = {"system": "Be very short.", "tools": [{"name": "add", "description": "adds"}], "source": "web"}
RECORDS: dict[Format, dict[str, Any]] = {
    "messages": {"messages": MESSAGES, "tools": BESIDE["tools"], "source": "web"},
    "sharegpt": {"conversations": TURNS, **BESIDE},
    "alpaca": {
        "instruction": "Add.",
        "input": "2, 2",
        "output": "Four.",
        "history": [["A", "B"]],
        **BESIDE,
    },
    "dolly": {"instruction": "Add.", "context": "2, 2", "response": "Four.", "category": "qa", **BESIDE},
    "oasst": {"prompt": TREE, "message_tree_id": "t1"},
    "ultrachat": {"data": ["How many?", "Four.", "Why?"], **BESIDE},
    "turns": {"User": ["How many?"], "Assistant": ["Four."], "Template": ["Be short."], "source": "web"},
    "prompt-response": {
        "prompt": [{"role": "user", "content": "How many?"}],
        "completion": [{"role": "assistant", "content": "Four."}],
        **BESIDE,
    },
    "question-answer": {"question": "How many?", "answer": "Four.", **BESIDE},
    "gsm8k": {"question": "How many?", "answer": "2+2 = 4\n#### 4", **BESIDE},
    "text": {"text": "Once upon a time", "url": "there"},
    "tokens": {"input_ids": [7, 3, 9], "labels": [-100, 3, 9], "attention_mask": [1, 1, 1], "text": "7 3 9"},
}


def convert(record: dict[str, Any], format: Format, **options: Any) -> Any:
    return to_conversation(Record(ORIGIN, record), format=format, **options)


def test_the_formats_are_those_of_the_settings():
    assert ("auto", *FORMATS) == get_args(FormatSetting)
    assert tuple(FIELD_NAMES) == tuple(RECORDS) == FORMATS


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_shows_in_its_fields(format: Format):
    assert detect_format(RECORDS[format]) == format


@pytest.mark.parametrize(
    ("fields", "format"),
    [
        ({"messages": 1}, "messages"),
        ({"messages": TURNS}, "sharegpt"),
        ({"conversations": MESSAGES}, "messages"),
        ({"conversations": json.dumps(MESSAGES)}, "messages"),
        ({"conversations": ["a", "b"]}, "ultrachat"),
        ({"messages": [], "conversations": TURNS}, "sharegpt"),
        ({"messages": MESSAGES, "prompt": "How many?", "prompt_id": "x"}, "messages"),
        ({"prompt": 1, "response": 2}, "prompt-response"),
        ({"prompt": 1, "completion": 2}, "prompt-response"),
        ({"prompt": "a", "response": "", "messages": None}, "prompt-response"),
        ({"instruction": "a", "response": "b"}, "dolly"),
        ({"instruction": "a", "input": "b", "output": "c", "text": "abc"}, "alpaca"),
        ({"text": "a", "role": "prompter", "replies": []}, "oasst"),
        ({"text": "a", "role": "prompter", "message_id": "m", "parent_id": None}, "oasst"),
        ({"question": "q", "answer": "x\n#### 1"}, "gsm8k"),
        ({"question": "q", "answer": "x"}, "question-answer"),
        ({"question": "q", "answer": ""}, None),
        ({"input_ids": [1], "text": "a"}, "tokens"),
        # two at once
        ({"messages": MESSAGES, "prompt": "a", "completion": "b"}, None),
        ({"instruction": "a", "output": "b", "response": "c"}, None),
        ({"messages": MESSAGES, "conversations": TURNS}, None),
        # none
        ({"prompt": "x"}, None),
        ({"data": "x"}, None),
        ({}, None),
    ],
)
def test_the_format_shows_in_the_fields(fields: dict[str, Any], format: str | None):
    assert detect_format(fields) == format


def test_names_given_to_fields_decide_with():
    fields = {"instruction": "a", "output": "b", "messages": MESSAGES}
    assert detect_format(fields) is None
    assert detect_format(fields, {"prompt": "instruction", "response": "output"}) == "prompt-response"
    assert detect_format(fields, {"instruction": "instruction"}) == "alpaca"
    assert detect_format({"dialog": TURNS}, {"conversations": "dialog"}) == "sharegpt"
    assert detect_format({"dialog": TURNS}, {"messages": "dialog"}) == "sharegpt"
    assert detect_format({"dialog": MESSAGES}, {"messages": "dialog"}) == "messages"


@pytest.mark.parametrize("format", FORMATS)
def test_every_field_of_every_format_may_have_another_name(format: Format):
    record = RECORDS[format]
    known = [name for name in record if name in FIELD_NAMES[format]]
    names = {name: f"their {name}" for name in known}
    renamed = {names.get(name, name): value for name, value in record.items()}
    decoys = dict.fromkeys(known, "decoy")
    expected, found = convert(record, format), convert({**renamed, **decoys}, format, fields=names)
    assert detect_format(renamed, names) == format
    assert repr(found) == repr(expected)
    unread = unread_fields(Record(ORIGIN, {**renamed, **decoys}), format=format, fields=names)
    assert set(unread) >= set(known)
    # the control: without the names it is another record
    assert repr(convert({**renamed, **decoys}, format)) != repr(expected)


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("messages", ["source"]),
        ("sharegpt", ["source"]),
        ("alpaca", ["source"]),
        ("dolly", ["category", "source"]),
        (
            "oasst",
            [
                "message_tree_id",
                "prompt.message_id",
                "replies that are not on the best path",
                "replies.labels",
            ],
        ),
        ("ultrachat", ["source"]),
        ("turns", ["source"]),
        ("prompt-response", ["source"]),
        ("question-answer", ["source"]),
        ("gsm8k", ["source"]),
        ("text", ["url"]),
        ("tokens", ["text"]),
    ],
)
def test_what_a_format_passes_over_is_named(format: Format, names: list[str]):
    fields = {**RECORDS[format], "empty": "", "none": None, "zero": 0}
    assert unread_fields(Record(ORIGIN, fields), format=format) == sorted([*names, "zero"])


def test_names_may_be_swapped():
    names = {"prompt": "response", "response": "prompt"}
    swapped = read({"response": "How many?", "prompt": "Four."}, "prompt-response", fields=names)
    assert [m.content for m in swapped.messages] == ["How many?", "Four."]
    # a field that was given away is not read under its own name as well
    refused = convert({"response": "How many?"}, "prompt-response", fields={"prompt": "response"})
    assert refused.fact == "no field 'response'; it has 'response'"


def test_prompts_with_responses_are_told_from_conversations():
    single = {"alpaca", "dolly", "prompt-response", "question-answer", "gsm8k", "text", "tokens"}
    assert {format for format in FORMATS if is_prompt_response(format)} == single


def entries(*fields: dict[str, Any]) -> list[Record | BadLine]:
    return [Record(Origin("t.jsonl", line), each) for line, each in enumerate(fields, start=1)]


def settle(shown: list[Record | BadLine], format: FormatSetting = "auto", **names: str) -> Format:
    return settle_format(iter(shown), "t.jsonl", format=format, fields=names or None)


def test_a_source_has_the_format_of_its_first_good_record():
    bad = BadLine(ORIGIN, "broken")
    shown = [bad, *entries({"x": 1}, {"prompt": 1, "response": 2}, {"messages": []})]
    assert settle(shown) == "prompt-response"
    assert settle(shown, "gsm8k") == "gsm8k"
    assert settle(shown, prompt="q", response="a") == "prompt-response"
    assert settle(entries({"q": "a", "answer": "#### 1"}), question="q") == "gsm8k"


@pytest.mark.parametrize(
    ("shown", "fact"),
    [
        (entries({"instruction": 1, "input": 2}), "(line 1 has 'instruction', 'input')"),
        ([BadLine(ORIGIN, "broken"), BadLine(ORIGIN, "again")], "(line 7: broken)"),
        ([BadLine(ORIGIN, "broken"), *entries({})], "(line 1 has no fields)"),
        (entries(*[{"x": 1}] * 1000, {"messages": []}), "(line 1 has 'x')"),
    ],
)
def test_a_source_whose_format_is_not_recognised_is_told(shown: list[Record | BadLine], fact: str):
    with pytest.raises(DataError) as caught:
        settle(shown)
    assert str(caught.value) == (
        f"t.jsonl: its format is not recognised {fact}; "
        'set data.format, or say what its fields are called: data.fields: {"prompt": …, "response": …}'
    )


def test_a_name_that_the_records_lack_is_told():
    with pytest.raises(DataError) as caught:
        settle(entries({"dialogue": MESSAGES}), messages="dialog")
    assert str(caught.value) == (
        "t.jsonl: its format is not recognised (line 1 has 'dialogue', but not 'dialog' of data.fields); "
        'set data.format, or say what its fields are called: data.fields: {"prompt": …, "response": …}'
    )


def test_two_formats_at_once_are_told():
    both = {"messages": MESSAGES, "prompt": "a", "completion": "b"}
    with pytest.raises(DataError) as caught:
        settle(entries({"x": 1}, both))
    assert str(caught.value) == (
        "t.jsonl: its records show messages and prompt-response at once (line 2); "
        "set data.format to the one that is meant"
    )
    assert settle(entries(both), "messages") == "messages"
    assert unread_fields(Record(ORIGIN, both), format="messages") == ["completion", "prompt"]


@pytest.mark.parametrize(
    ("format", "names", "expected"),
    [
        (
            "dolly",
            {"prompt": "q"},
            "data.fields: the format dolly has no field 'prompt'; "
            "it has 'instruction', 'context', 'response', 'system', 'tools'",
        ),
        (
            "auto",
            {"prompt": "q", "answer": "a"},
            "data.fields: no format has the fields 'prompt', 'answer' together; "
            "name fields of one format, such as prompt and response",
        ),
        (
            "auto",
            {"prompt": "q", "response": "q"},
            "data.fields: 'q' is given to two fields; give every field a name of its own",
        ),
    ],
)
def test_names_that_do_not_fit_are_told(format: FormatSetting, names: dict[str, str], expected: str):
    with pytest.raises(ConfigError) as caught:
        settle(entries({"q": "a"}), format, **names)
    assert str(caught.value) == expected


def test_a_transcript_is_refused_for_what_it_is(shared: Path):
    path = shared / "data/tau_airline_fewshot.jsonl"
    with pytest.raises(DataError) as caught:
        settle_format(read_records(path), "t.jsonl", format="auto", fields=None)
    assert str(caught.value) == (
        "t.jsonl: its format is not recognised (line 1 has 'messages_display', a transcript); "
        "write its turns and tool calls as a list of messages (data.format: messages)"
    )
    record = next(iter(read_records(path)))
    assert isinstance(record, Record)
    refused = to_conversation(record, format="messages", fields={"messages": "messages_display"})
    assert isinstance(refused, BadRecord)
    assert refused.fact == (
        "'messages_display' is a transcript, which does not keep turns and tool calls apart"
    )


# Any JSON at any place of a sound record: it is read or refused, and no text of it is lost in silence.

json_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text() | st.sampled_from(["user", "assistant", "#### 1", "text", "gpt", "[]", "{}", "<think>"])
json_values = st.recursive(
    json_scalars | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=6
)
known_names = sorted(
    {name for names in FIELD_NAMES.values() for name in names}
    | {
        "role",
        "content",
        "from",
        "value",
        "type",
        "text",
        "reasoning",
        "thinking",
        "tool_calls",
        "function_call",
    }
    | {"name", "arguments", "function", "weight", "train", "rank", "replies", "deleted", "labels", "extra"}
)


@st.composite
def changed_records(draw: st.DrawFn) -> tuple[Format, dict[str, Any]]:
    """A sound record of some format with up to three values put in, replaced or taken away."""
    format = draw(st.sampled_from(FORMATS))
    record = copy.deepcopy(RECORDS[format])
    for _ in range(draw(st.integers(0, 3))):
        holders = list(_holders(record))
        holder = draw(st.sampled_from(holders))
        if isinstance(holder, dict):
            name = draw(st.sampled_from([*holder, *known_names]))
            if name in holder and draw(st.booleans()) and draw(st.booleans()):
                del holder[name]
            else:
                holder[name] = copy.deepcopy(
                    draw(json_values | st.sampled_from([MESSAGES, TURNS, CALL, TREE]))
                )
        else:
            place = draw(st.integers(0, len(holder)))
            holder[place : place + draw(st.integers(0, 1))] = [draw(json_values)]
    return format, record


@settings(max_examples=400)
@given(changed=changed_records())
def test_any_json_is_read_or_refused_and_no_text_is_lost_in_silence(changed: tuple[Format, dict[str, Any]]):
    format, fields = changed
    before = copy.deepcopy(fields)
    detect_format(fields)
    item = convert(fields, format)
    assert fields == before
    assert item.origin == ORIGIN
    if isinstance(item, BadRecord):
        assert item.fact
        assert item.remedy
        return
    assert lost_texts(item, fields, unread_fields(Record(ORIGIN, fields), format=format)) == []


def test_a_loss_would_be_noticed():
    """Negative control: what is neither read nor named is found."""
    fields = {"messages": [{"role": "assistant", "content": "a"}], "note": "b", "tools": [{"name": "c"}]}
    item = convert(fields, "messages")
    assert lost_texts(item, fields, ["note"]) == []
    assert lost_texts(item, fields, []) == ["note: b"]
    without_tools = Conversation(item.messages, item.origin)
    assert lost_texts(without_tools, fields, ["note"]) == ["tools[].name: c"]


@settings(max_examples=200)
@given(
    fields=st.dictionaries(st.sampled_from(known_names), json_values, max_size=6),
    format=st.sampled_from(FORMATS),
)
def test_any_json_gives_a_conversation_or_a_refusal(fields: dict[str, Any], format: Format):
    detect_format(fields)
    assert isinstance(convert(fields, format), Conversation | PlainText | GivenTokens | BadRecord)


def lost_texts(item: Conversation | PlainText | GivenTokens, fields: object, unread: list[str]) -> list[str]:
    """Texts of a record that stand neither in what was read nor below a name of what was passed over."""
    read_texts = _texts_of(item)
    lost: list[str] = []
    for place, text in _leaves(fields, ""):
        # What says how to read a record is no text of it.
        is_told = re.search(r"(^|\.)(role|from|type|rank|deleted|review_result)$", place) is not None
        below = re.sub(r"^(prompt\.)?(replies\[\]\.)+", "replies.", place)
        is_named = any(
            each == name or each.startswith((f"{name}.", f"{name}["))
            for name in unread
            for each in (place, below)
        )
        is_named |= below.startswith("replies.") and "replies that are not on the best path" in unread
        is_none = place.startswith("Template") and text == "CUSTOM"
        if text.strip() and not (is_told or is_named or is_none or _stands_in(text, read_texts)):
            lost.append(f"{place}: {text}")
    return lost


def _texts_of(item: Conversation | PlainText | GivenTokens) -> list[str]:
    if isinstance(item, PlainText):
        return [item.text]
    if isinstance(item, GivenTokens):
        return []
    found = [text for _, text in _leaves([list(item.tools), [list(m.tool_calls) for m in item.messages]], "")]
    for message in item.messages:
        parts = (message.content, message.reasoning_content, message.name, message.tool_call_id)
        found.extend(part for part in (*parts, message.text_with_reasoning) if part)
    return found


def _stands_in(text: str, found: list[str]) -> bool:
    """Whether a text stands in one that was read: as it is, within JSON, or as the parts of its own JSON."""
    written = json.dumps(text, ensure_ascii=False)[1:-1]
    if any(text in each or written in each for each in found):
        return True
    # GSM8K's mark becomes a tag, and thinking is parted from the answer.
    pieces = [
        piece for piece in re.split(r"####|</?think>|\n", re.sub("<<[^<>]*>>", "", text)) if piece.strip()
    ]
    if len(pieces) > 1 or (pieces and pieces[0] != text):
        return all(any(piece.strip() in each for each in found) for piece in pieces)
    try:
        inner = [leaf for _, leaf in _leaves(json.loads(text), "") if leaf.strip()]
    except ValueError:
        return False
    return all(_stands_in(leaf, found) for leaf in inner if leaf != text)


def _leaves(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Every text of a JSON value with its place, keys of objects as well where they are not names of ours."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, f"{place}[]")


def _holders(value: object) -> Iterator[Any]:
    """Every object and list of a JSON value."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)
