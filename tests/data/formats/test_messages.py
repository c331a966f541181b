"""Messages with content, reasoning, calls and weights become turns, or are refused in plain words."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.records import messages_of, read, refusal, unread

from finetooth.data.records import Message, Record
from finetooth.data.sources.reading import read_records

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
ASK = {"role": "user", "content": "2+2?"}


def assistant(**fields: Any) -> Message:
    """The assistant's message among messages that are sound otherwise."""
    return messages_of({"messages": [ASK, {"role": "assistant", **fields}]}, "messages")[1]


def test_messages_carry_everything_that_is_rendered():
    tool = {"type": "function", "function": {"name": "add"}}
    conversation = read(
        {
            "messages": [
                {"role": "developer", "content": ""},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "2+"}, {"type": "text", "value": "2?"}],
                },
                {"role": "assistant", "content": None, "reasoning_content": "add", "tool_calls": [CALL]},
                {"role": "tool", "content": "", "tool_calls": None, "tool_call_id": "c1", "name": "add"},
                {"role": "assistant", "content": " 4", "weight": 1, "name": ""},
                {"role": "user", "content": "Thanks"},
            ],
            "tools": [tool],
        }
    )
    assert conversation.messages == (
        Message("system", ""),
        Message("user", "2+2?"),
        Message("assistant", "", "add", (CALL,)),
        Message("tool", "", tool_call_id="c1", name="add"),
        Message("assistant", " 4"),
        Message("user", "Thanks"),
    )
    assert conversation.tools == (tool,)


def test_neighbours_may_have_the_same_role():
    said = [ASK, ASK, {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "Four."}]
    assert [m.role for m in messages_of({"messages": said})] == ["user", "user", "assistant", "assistant"]


@pytest.mark.parametrize("name", ["conversations", "conversation"])
def test_the_list_may_have_other_names_and_be_json_text(name: str):
    said = [ASK, {"role": "assistant", "content": "4"}]
    expected = (Message("user", "2+2?"), Message("assistant", "4"))
    assert messages_of({name: said}) == messages_of({name: json.dumps(said)}) == expected


def test_system_text_and_tools_may_stand_beside_the_messages():
    answer = {"role": "assistant", "content": "4"}
    bare = {"name": "add", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": bare}
    for tools in (
        {"tools": json.dumps([tool])},
        {"functions": [bare]},
        {"tools": [tool]},
    ):
        conversation = read({"messages": [answer], "system": "Be short.", **tools})
        assert conversation.messages[0] == Message("system", "Be short.")
        assert conversation.tools == (tool,)
    assert read({"messages": [answer], "system": "", "tools": "[]"}).messages == (Message("assistant", "4"),)
    for kept in (bare, {"type": "web_search", "name": "search"}):
        assert read({"messages": [answer], "tools": [kept]}).tools == (kept,)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_three_names(name: str):
    assert assistant(content="4", **{name: "2+2=4"}) == Message("assistant", "4", "2+2=4")


def test_equal_reasoning_under_two_names_is_one():
    fields = {"content": "4", "reasoning": "add", "reasoning_content": "add"}
    assert assistant(**fields) == Message("assistant", "4", "add")
    assert unread({"messages": [{"role": "assistant", **fields}]}) == []


@pytest.mark.parametrize("kind", ["reasoning", "thinking"])
def test_typed_parts_become_reasoning_text_and_calls(kind: str):
    bare = {"name": "add", "arguments": {"a": 2}}
    for call in (bare, json.dumps(bare), [bare]):
        parts = [
            {"type": kind, "value": "I "},
            {"type": kind, kind: "add."},
            {"type": "text", "text": "Let "},
            {"type": "output_text", "value": "me."},
            {"type": "tool_call", "value": call},
        ]
        assert assistant(content=parts) == Message("assistant", "Let me.", "I add.", (CALL,))


def test_calls_come_in_every_spelling_and_keep_what_else_they_hold():
    text = json.dumps({"a": 2})
    bare = {"name": "add", "arguments": text}
    assert assistant(tool_calls=[{"type": "function", "function": bare}]).tool_calls == (CALL,)
    assert assistant(tool_calls=[bare]).tool_calls == (CALL,)
    assert assistant(content="", function_call=bare).tool_calls == (CALL,)
    [call] = assistant(tool_calls=[{"id": "c1", "index": 0, "function": {**bare, "strict": True}}]).tool_calls
    function = {"name": "add", "arguments": {"a": 2}, "strict": True}
    assert call == {"id": "c1", "index": 0, "type": "function", "function": function}
    [call] = assistant(tool_calls=[{"id": "c1", **bare}]).tool_calls
    assert call == {"id": "c1", **CALL}


def test_the_older_role_function_is_a_tool():
    said = [ASK, {"role": "assistant", "content": "4"}, {"role": "function", "name": "add", "content": "4"}]
    assert messages_of({"messages": said})[2] == Message("tool", "4", name="add")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"sum": 4}', '{"sum": 4}'),
        ({"sum": "vier €"}, '{"sum": "vier €"}'),
        ([1, {"type": "text"}], '[1, {"type": "text"}]'),
        ([{"type": "place"}], '[{"type": "place"}]'),
        ([], "[]"),
        ([{"type": "text", "text": "4"}], "4"),
    ],
)
def test_the_result_of_a_tool_is_text_parts_or_json(content: object, expected: str):
    said = [ASK, {"role": "assistant", "content": "4"}, {"role": "tool", "content": content}]
    assert messages_of({"messages": said})[2] == Message("tool", expected)


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({}, 1),
        ({"loss_weight": 0.25}, 0.25),
        ({"loss_weight": 0}, 0),
        ({"weight": 2}, 2),
        ({"train": False}, 0),
        ({"training": True}, 1),
        ({"loss": False}, 0),
        ({"loss": 0.7}, 1),  # what somebody measured
        ({"train": True, "weight": 1}, 1),
        ({"weight": None}, 1),
    ],
)
def test_a_message_may_say_what_its_loss_weighs(fields: dict[str, Any], weight: float):
    message = assistant(content="4", **fields)
    assert message == Message("assistant", "4", loss_weight=weight)
    assert isinstance(message.loss_weight, float)


def test_unread_fields_of_messages_and_parts_are_named():
    fields = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a", "cache_control": {"ttl": 5}}],
                "id": 0,
            },
            {"role": "assistant", "content": "b", "name": "", "logprobs": [0.5], "loss": 0.7},
        ],
        "source": "web",
        "meta": {},
    }
    parts = ["messages[].content[].cache_control", "messages[].id", "messages[].logprobs"]
    named = [*parts, "messages[].loss", "source"]
    assert unread(fields) == named


TEXT = "write it as a text"
BROKEN = "broken JSON at character 1: expecting value"
LIST = "write it as a list"
OBJECT = "write it as an object"
CALL_FORM = 'write {"name": …, "arguments": {…}}'
ARGUMENTS = "write them as an object, {} for none"
KEEP = "keep one of them"
WEIGHT = "write 0 for context only, 1 for a usual answer, or another number above 0"
ORDER = "divide it into several messages, each with reasoning, then text, then tool calls"
TEXT_ONLY = "only text can be trained; remove the record"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"messages": "hi"},
            f"'messages' is a text and no JSON list ({BROKEN}); {LIST}",
        ),
        ({"messages": "{}"}, f"'messages' is an object instead of a list; {LIST}"),
        (
            {"messages": "user: Hi\nassistant: Hello"},
            "'messages' is a transcript, which does not keep turns and tool calls apart; "
            "write it as a list of messages",
        ),
        ({"messages": []}, "no messages; write messages or remove the record"),
        ({"messages": [None]}, f"messages[0] is null instead of an object; {OBJECT}"),
        ({"messages": [ASK]}, "no assistant turn; add an answer or remove the record"),
        (
            {"messages": [ASK], "conversations": [ASK, ASK]},
            "both 'messages' and 'conversations'; name one of them in data.fields",
        ),
        (
            {"messages": [ASK, {"role": "system", "content": ""}], "system": "a"},
            f"both a field 'system' and a system message; {KEEP}",
        ),
    ],
)
def test_each_refusal_of_a_record_in_full(fields: dict[str, Any], expected: str):
    assert refusal(fields, "messages") == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": "a"}, "@ has no role; use system, user, assistant or tool"),
        ({"role": "bot"}, "@: unknown role 'bot'; use system, user, assistant or tool"),
        (
            {"role": ["x" * 50]},
            "@: unknown role ['xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…; use system, user, assistant or tool",
        ),
        ({"role": "assistant"}, "@ has no 'content'; add it"),
        ({"role": "assistant", "content": None}, f"@.content is null instead of a text; {TEXT}"),
        ({"role": "assistant", "content": 4}, f"@.content is a number instead of a text; {TEXT}"),
        ({"role": "assistant", "content": True}, f"@.content is true instead of a text; {TEXT}"),
        ({"role": "user", "content": {"text": "a"}}, f"@.content is an object instead of a text; {TEXT}"),
        ({"role": "tool", "content": 4}, f"@.content is a number instead of a text; {TEXT}"),
        ({"role": "assistant", "content": ["a"]}, f"@.content[0] is a text instead of an object; {OBJECT}"),
        ({"role": "user", "content": [{"type": "text"}]}, "@.content[0] has no 'text'; add it"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "value": "b"}]},
            f"both @.content[0].text and @.content[0].value; {KEEP}",
        ),
        ({"role": "user", "content": [{"type": "image_url"}]}, f"@.content[0] is an image; {TEXT_ONLY}"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, f"@.content[0] is a sound; {TEXT_ONLY}"),
        (
            {"role": "user", "content": [{"type": "tool_use"}]},
            "@.content[0] is of type 'tool_use'; only text, reasoning and tool_call are read",
        ),
        (
            {"role": "user", "content": [{"text": "a"}]},
            "@.content[0] is of type None; only text, reasoning and tool_call are read",
        ),
        (
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a"}, {"type": "thinking", "text": "b"}],
            },
            f"@.content: thinking behind text; {ORDER}",
        ),
        (
            {
                "role": "assistant",
                "content": [{"type": "tool_call", "value": CALL}, {"type": "text", "text": ""}],
            },
            f"@.content: text behind tool calls; {ORDER}",
        ),
        ({"role": "assistant", "content": " "}, "@: empty answer; write an answer or remove the record"),
        (
            {"role": "assistant", "content": "<think>hm</think>\n "},
            "@: empty answer behind the reasoning; write an answer or remove the record",
        ),
        (
            {"role": "assistant", "content": "", "reasoning_content": "hm"},
            "@: empty answer; write an answer or remove the record",
        ),
        ({"role": "user", "content": []}, "@: empty prompt; write a prompt or remove the record"),
        (
            {"role": "assistant", "content": "a", "reasoning_content": 1},
            f"@.reasoning_content is a number instead of a text; {TEXT}",
        ),
        (
            {"role": "assistant", "content": "a", "reasoning": "b", "thinking": "c"},
            f"both @.reasoning and @.thinking; {KEEP}",
        ),
        (
            {"role": "assistant", "content": [{"type": "thinking", "text": "b"}], "thinking": "c"},
            f"@ has its reasoning twice, in a part of its content and beside it; {KEEP}",
        ),
        (
            {"role": "user", "content": "a", "thinking": "b"},
            "@ has reasoning but the role user; leave it to the assistant",
        ),
        (
            {"role": "tool", "content": "a", "tool_calls": [CALL]},
            "@ has tool calls but the role tool; leave them to the assistant",
        ),
        ({"role": "tool", "content": "a", "name": 1}, f"@.name is a number instead of a text; {TEXT}"),
        (
            {"role": "assistant", "tool_calls": {"a": 1}},
            f"@.tool_calls is an object instead of a list; {LIST}",
        ),
        (
            {"role": "assistant", "tool_calls": [4]},
            f"@.tool_calls[0] is a number instead of an object; {OBJECT}",
        ),
        ({"role": "assistant", "tool_calls": [{}]}, f"@.tool_calls[0] is empty; {OBJECT}"),
        ({"role": "assistant", "tool_calls": [{"id": 1}]}, f"@.tool_calls[0] names no tool; {CALL_FORM}"),
        ({"role": "assistant", "tool_calls": [{"name": " "}]}, f"@.tool_calls[0] names no tool; {CALL_FORM}"),
        (
            {"role": "assistant", "tool_calls": [{"type": "custom"}]},
            f"@.tool_calls[0] is a call of type 'custom'; {CALL_FORM}",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f"}]},
            f"@.tool_calls[0] ('f') has no arguments; {ARGUMENTS}",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "a=1"}]},
            f"@.tool_calls[0] ('f'): its arguments are not JSON ({BROKEN}); {ARGUMENTS}",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            f"@.tool_calls[0] ('f') has arguments that are a list; {ARGUMENTS}",
        ),
        (
            {"role": "assistant", "function_call": "f(1)"},
            f"@.function_call is no tool call in JSON ({BROKEN}); {CALL_FORM}",
        ),
        (
            {"role": "assistant", "tool_calls": [CALL], "function_call": CALL},
            "@ has tool calls in two places; write all of them into tool_calls",
        ),
        ({"role": "assistant", "content": "a", "weight": -1}, f"@.weight is -1; {WEIGHT}"),
        ({"role": "assistant", "content": "a", "weight": 1e-40}, f"@.weight is 1e-40; {WEIGHT}"),
        ({"role": "assistant", "content": "a", "weight": 1e39}, f"@.weight is 1e+39; {WEIGHT}"),
        ({"role": "assistant", "content": "a", "train": "no"}, f"@.train is 'no'; {WEIGHT}"),
        (
            {"role": "assistant", "content": "a", "weight": 0, "train": True},
            f"both @.weight and @.train; {KEEP}",
        ),
    ],
)
def test_each_refusal_of_a_message_in_full(message: dict[str, Any], expected: str):
    good = {"role": "assistant", "content": "yes"}
    assert refusal({"messages": [good, message]}, "messages") == expected.replace("@", "messages[1]")
    # the control: the record is refused for this message and for nothing else
    assert len(messages_of({"messages": [good, good]})) == 2


def test_tools_that_are_no_objects_are_refused():
    fields = {"messages": [{"role": "assistant", "content": "a"}]}
    assert refusal({**fields, "tools": ["add"]}) == f"tools[0] is a text instead of an object; {OBJECT}"
    assert refusal({**fields, "tools": "add"}) == (f"'tools' is a text and no JSON list ({BROKEN}); {LIST}")


def test_a_real_file_of_typed_parts_is_read(shared: Path):
    records = list(read_records(shared / "data/reason_tool_use_50.jsonl"))
    assert len(records) == 50
    num_calls = 0
    for record in records:
        assert isinstance(record, Record)
        conversation = read(record.fields)
        assert all(tool["function"]["name"] for tool in conversation.tools)
        answers = [m for m in conversation.messages if m.role == "assistant"]
        assert all(message.reasoning_content for message in answers)
        assert all(bool(message.content) != bool(message.tool_calls) for message in answers)
        num_calls += sum(len(message.tool_calls) for message in answers)
        assert unread(record.fields) == []
    assert num_calls == 41 + 2 * 9 + 3 * 3
