"""Every format becomes a conversation, and what does not fit is refused in plain words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base.errors import DataError
from finetooth.data.formats.reading import (
    BadRecord,
    Format,
    detect_format,
    settle_format,
    to_conversation,
    unread_fields,
)
from finetooth.data.records import Conversation, Message, Origin, Record
from finetooth.data.sources import BadLine, read_records

ORIGIN = Origin("t.jsonl", 7)
FORMATS: tuple[Format, ...] = ("messages", "prompt-response", "gsm8k")


def convert(record: dict[str, Any], format: Format | None = None, **options: Any) -> Conversation:
    found = format or detect_format(record)
    assert found is not None
    conversation = to_conversation(Record(ORIGIN, record), format=found, **options)
    assert isinstance(conversation, Conversation), conversation
    assert conversation.origin == ORIGIN
    return conversation


def refusal(fields: dict[str, Any], format: Format, **options: Any) -> str:
    refused = to_conversation(Record(ORIGIN, fields), format=format, **options)
    assert isinstance(refused, BadRecord), refused
    assert refused.origin == ORIGIN
    return f"{refused.fact}; {refused.remedy}"


def test_prompt_and_response_keep_every_character():
    expected = (Message("user", " 2+2?\n"), Message("assistant", "\n4 "))
    for fields in ({"prompt": " 2+2?\n", "response": "\n4 "}, {"prompt": " 2+2?\n", "completion": "\n4 "}):
        conversation = convert(fields)
        assert conversation.messages == expected


def test_any_two_fields_can_be_named():
    fields = {"instruction": "Hi", "output": "Hello", "prompt": "not this"}
    names = {"prompt": "instruction", "response": "output"}
    conversation = convert(fields, "prompt-response", fields=names)
    assert [m.content for m in conversation.messages] == ["Hi", "Hello"]
    conversation = convert({"q": "Hi", "response": "Hello"}, "prompt-response", fields={"prompt": "q"})
    assert [m.content for m in conversation.messages] == ["Hi", "Hello"]


def test_gsm8k_loses_its_annotations_and_gains_an_answer_tag():
    answer = (
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
    )
    conversation = convert({"question": "How many?", "answer": answer})
    assert conversation.messages[1].content == (
        "Natalia sold 48/2 = 24 clips in May.\n"
        "Natalia sold 48+24 = 72 clips altogether in April and May.\n<answer>72</answer>"
    )
    assert convert({"question": "q", "answer": "#### 1,000 "}).messages[1].content == "<answer>1,000</answer>"


def test_messages_carry_everything_that_is_rendered():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    tool = {"type": "function", "function": {"name": "add"}}
    conversation = convert(
        {
            "messages": [
                {"role": "developer", "content": ""},
                {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]},
                {"role": "assistant", "content": None, "reasoning_content": "add", "tool_calls": [call]},
                {"role": "tool", "content": "", "tool_calls": None},
                {"role": "assistant", "content": " 4", "weight": 1},
            ],
            "tools": [tool],
        }
    )
    assert conversation.messages == (
        Message("system", ""),
        Message("user", "2+2?"),
        Message("assistant", "", "add", (call,)),
        Message("tool", ""),
        Message("assistant", " 4"),
    )
    assert conversation.tools == (tool,)


def test_what_a_format_passes_over_is_named():
    def unread(record: dict[str, Any], format: Format, **options: Any) -> list[str]:
        return list(unread_fields(Record(ORIGIN, record), format=format, **options))

    pair = {"prompt": "a", "response": "b", "id": 7, "empty": "", "none": None, "zero": 0}
    assert unread(pair, "prompt-response") == ["id", "zero"]
    names = {"prompt": "id", "response": "zero"}
    assert unread(pair, "prompt-response", fields=names) == ["prompt", "response"]
    assert unread({"question": "a", "answer": "b", "x": [1]}, "gsm8k") == ["x"]
    tool = {"role": "tool", "content": "4", "tool_call_id": "c1", "name": "", "weight": 1}
    assert unread({"messages": [tool], "tools": [], "x": {}}, "messages") == ["messages[].tool_call_id"]


@pytest.mark.parametrize(
    ("fields", "format"),
    [
        ({"messages": 1, "prompt": "a", "response": "b"}, "messages"),
        ({"prompt": 1, "response": 2}, "prompt-response"),
        ({"prompt": 1, "completion": 2}, "prompt-response"),
        ({"question": "q", "answer": "x\n#### 1"}, "gsm8k"),
        ({"question": "q", "answer": "x"}, None),
        ({"question": "q", "answer": ["#### 1"]}, None),
        ({"prompt": "x"}, None),
        ({"instruction": "x", "output": "y"}, None),
        ({}, None),
    ],
)
def test_the_format_shows_in_the_fields(fields: dict[str, Any], format: str | None):
    assert detect_format(fields) == format


WRITE_TEXT = "write it as a text"
WRITE_PROMPT = "write a prompt or remove the record"
WRITE_ANSWER = "write an answer or remove the record"
WRITE_LIST = "write it as a list of objects"
PAIR: Format = "prompt-response"


@pytest.mark.parametrize(
    ("fields", "format", "message"),
    [
        ({}, PAIR, "no field 'prompt'; it has no fields; add it, or set data.format or data.fields"),
        (
            {"prompt": "a", "b\x1b": 1},
            "prompt-response",
            "no field 'response'; it has 'prompt', 'b\\x1b'; add it, or set data.format or data.fields",
        ),
        (
            {str(number): "x" * 50 for number in range(9)} | {"x" * 50: 1},
            "messages",
            "no field 'messages'; it has '0', '1', '2', '3', '4', '5', '6', '7', …; "
            "add it, or set data.format or data.fields",
        ),
        ({"prompt": 1, "response": "b"}, PAIR, f"'prompt' is a number instead of a text; {WRITE_TEXT}"),
        ({"prompt": "a", "response": []}, PAIR, f"'response' is a list instead of a text; {WRITE_TEXT}"),
        ({"prompt": " \n", "response": "b"}, PAIR, f"empty prompt; {WRITE_PROMPT}"),
        ({"prompt": "a", "response": "\t"}, PAIR, f"empty answer; {WRITE_ANSWER}"),
        (
            {"prompt": "a", "response": "b", "completion": "c"},
            "prompt-response",
            "both a field 'response' and a field 'completion'; name one of them in data.fields",
        ),
        (
            {"question": "a", "answer": "b"},
            "gsm8k",
            "the answer has no line '#### result'; add it, or name another data.format",
        ),
        (
            {"question": "a", "answer": "b\n#### "},
            "gsm8k",
            "no result after '####'; end the answer with one line '#### result'",
        ),
        (
            {"question": "a", "answer": "b\n#### 1\n2"},
            "gsm8k",
            "more than one line after '####'; end the answer with one line '#### result'",
        ),
        ({"messages": "hi"}, "messages", f"'messages' is a text instead of a list; {WRITE_LIST}"),
        ({"messages": []}, "messages", "no messages; write messages or remove the record"),
        ({"messages": [None]}, "messages", "messages[0] is null instead of an object; write it as an object"),
        (
            {"messages": [{"role": "user", "content": "a"}]},
            "messages",
            "no assistant turn; add an answer or remove the record",
        ),
    ],
)
def test_each_refusal_of_a_record_in_full(fields: dict[str, Any], format: Format, message: str):
    assert refusal(fields, format) == message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "a"}, "messages[1] has no role; use system, user, assistant or tool"),
        (
            {"role": "bot", "content": "a"},
            "messages[1]: unknown role 'bot'; use system, user, assistant or tool",
        ),
        (
            {"role": ["x" * 50]},
            "messages[1]: unknown role ['xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…; "
            "use system, user, assistant or tool",
        ),
        ({"role": "assistant"}, "messages[1] has no content; add it as a text"),
        (
            {"role": "assistant", "content": 4},
            "messages[1].content is a number instead of a text; write it as a text",
        ),
        (
            {"role": "assistant", "content": True},
            "messages[1].content is true instead of a text; write it as a text",
        ),
        (
            {"role": "assistant", "content": {"text": "a"}},
            "messages[1].content is an object instead of a text; write it as a text",
        ),
        (
            {"role": "assistant", "content": ["a"]},
            "messages[1].content[0] is a text instead of an object; write it as an object",
        ),
        (
            {"role": "assistant", "content": [{"type": "reasoning", "value": "a"}]},
            "messages[1].content[0] is of type 'reasoning'; only text is read",
        ),
        (
            {"role": "assistant", "content": [{"type": "text", "value": "a"}]},
            "messages[1].content[0] has no 'text'; write the text under 'text'",
        ),
        (
            {"role": "assistant", "content": " "},
            "messages[1]: empty answer; write an answer or remove the record",
        ),
        (
            {"role": "assistant", "content": "", "reasoning_content": "hm"},
            "messages[1]: empty answer; write an answer or remove the record",
        ),
        ({"role": "user", "content": []}, "messages[1]: empty prompt; write a prompt or remove the record"),
        (
            {"role": "assistant", "content": "a", "reasoning_content": 1},
            "messages[1].reasoning_content is a number instead of a text; write it as a text",
        ),
        (
            {"role": "assistant", "content": "a", "tool_calls": {"a": 1}},
            "'messages[1].tool_calls' is an object instead of a list; write it as a list of objects",
        ),
        (
            {"role": "user", "content": "a", "tool_calls": [{}]},
            "messages[1] has tool_calls but the role user; leave them to the assistant",
        ),
        (
            {"role": "assistant", "content": "a", "function_call": {}},
            "messages[1] has 'function_call', which is not read; write it as an entry of tool_calls",
        ),
        (
            {"role": "assistant", "content": "a", "thinking": "b"},
            "messages[1] has 'thinking', which is not read; call it reasoning_content",
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "b"},
            "messages[1] has 'reasoning', which is not read; call it reasoning_content",
        ),
        (
            {"role": "assistant", "content": "a", "weight": 0},
            "messages[1] has 'weight', which is not read; "
            "remove it: messages have no loss weights of their own",
        ),
    ],
)
def test_each_refusal_of_a_message_in_full(message: dict[str, Any], expected: str):
    good = {"role": "assistant", "content": "yes"}
    assert refusal({"messages": [good, message]}, "messages") == expected
    # the control: the record is refused for this message and for nothing else
    assert isinstance(convert({"messages": [good, good]}), Conversation)


def test_tools_must_be_a_list():
    fields = {"messages": [{"role": "assistant", "content": "a"}], "tools": "[]"}
    assert refusal(fields, "messages") == "'tools' is a text instead of a list; write it as a list of objects"


json_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json_values = st.recursive(json_scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=6)
known_names = [
    *("messages", "tools", "prompt", "response", "completion", "question", "answer", "type", "text"),
    *("role", "content", "reasoning_content", "tool_calls", "function_call", "reasoning", "weight"),
]
likely_values = json_values | st.sampled_from(["user", "assistant", "#### 1", "text", "hello", 1])
likely_objects = st.dictionaries(st.sampled_from(known_names), likely_values, max_size=6)
likely_fields = st.dictionaries(
    st.sampled_from(known_names), likely_values | likely_objects | st.lists(likely_objects, max_size=3)
)


@settings(deadline=None)
@given(fields=likely_fields, format=st.sampled_from(FORMATS), named=st.booleans())
def test_any_json_gives_a_conversation_or_a_refusal(fields: dict[str, Any], format: Format, named: bool):
    detect_format(fields)
    names = {"prompt": "question", "response": "text"} if named else None
    result = to_conversation(Record(ORIGIN, fields), format=format, fields=names)
    assert result.origin == ORIGIN
    if isinstance(result, Conversation):
        assert any(message.role == "assistant" for message in result.messages)
        assert all(isinstance(message.content, str) for message in result.messages)
    else:
        assert isinstance(result, BadRecord)
        assert result.fact
        assert result.remedy


def test_every_gsm8k_record_is_understood(shared: Path):
    for name, num_records in (("train", 7473), ("test", 1319)):
        records = list(read_records(shared / "data/gsm8k" / f"{name}.jsonl"))
        assert len(records) == num_records
        for record in records:
            assert isinstance(record, Record)
            answer = convert(record.fields).messages[1].content
            source = json.loads(json.dumps(record.fields["answer"]))
            expected = re.sub(r"\n#### (.*)$", r"\n<answer>\1</answer>", re.sub("<<.*?>>", "", source))
            assert [line.rstrip() for line in answer.split("\n")] == [
                line.rstrip() for line in expected.split("\n")
            ]


def test_real_files_of_other_shapes_are_refused_not_misread(shared: Path):
    reason = next(iter(read_records(shared / "data/reason_tool_use_50.jsonl")))
    assert isinstance(reason, Record)
    assert refusal(reason.fields, "messages") == (
        "messages[0].content[0] has no 'text'; write the text under 'text'"
    )
    alpaca = next(iter(read_records(shared / "data/alpaca_999.json")))
    assert isinstance(alpaca, Record)
    assert detect_format(alpaca.fields) is None
    names = {"prompt": "instruction", "response": "output"}
    assert convert(alpaca.fields, "prompt-response", fields=names).messages[0].content == (
        "Describe a process of making crepes."
    )


def entries(*fields: dict[str, Any]) -> list[Record | BadLine]:
    return [Record(Origin("t.jsonl", line), each) for line, each in enumerate(fields, start=1)]


def test_a_source_has_the_format_of_its_first_good_record():
    bad = BadLine(ORIGIN, "broken")
    shown = [bad, *entries({"x": 1}, {"prompt": 1, "response": 2}, {"messages": []})]
    assert settle_format(shown, "t.jsonl", format="auto", fields=None) == "prompt-response"
    assert settle_format(shown, "t.jsonl", format="gsm8k", fields=None) == "gsm8k"
    names = {"prompt": "q", "response": "a"}
    assert settle_format(shown, "t.jsonl", format="auto", fields=names) == "prompt-response"


@pytest.mark.parametrize(
    ("shown", "fact"),
    [
        (entries({"instruction": 1, "output": 2}), "(line 1 has 'instruction', 'output')"),
        ([BadLine(ORIGIN, "broken"), BadLine(ORIGIN, "again")], "(line 7: broken)"),
        ([BadLine(ORIGIN, "broken"), *entries({})], "(line 1 has no fields)"),
        (entries(*[{"x": 1}] * 1000, {"messages": []}), "(line 1 has 'x')"),
    ],
)
def test_a_source_whose_format_is_not_recognised_is_told(shown: list[Record | BadLine], fact: str):
    with pytest.raises(DataError) as caught:
        settle_format(shown, "t.jsonl", format="auto", fields=None)
    assert str(caught.value) == (
        f"t.jsonl: its format is not recognised {fact}; "
        'set data.format, or name two fields: data.fields: {"prompt": …, "response": …}'
    )
