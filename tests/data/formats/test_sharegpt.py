"""Turns with `from` and `value` become messages, and calls of functions join the answer before them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tests.records import messages_of, read, refusal, unread

from finetooth.data.records import Message, Record
from finetooth.data.sources.reading import read_records

BARE = {"name": "add", "arguments": {"a": 2}}
CALL = {"type": "function", "function": BARE}


def turns(*pairs: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in pairs], **fields}


def test_every_speaker_has_a_role():
    speakers = ["system", "human", "gpt", "user", "assistant", "human", "chatgpt", "human", "bard"]
    conversation = read(turns(*[(speaker, "a") for speaker in speakers], ("tool", '{"b": 1}')))
    roles = ["system", "user", "assistant", "user", "assistant", "user", "assistant", "user", "assistant"]
    assert [message.role for message in conversation.messages] == [*roles, "tool"]


@pytest.mark.parametrize("name", ["conversation", "messages"])
def test_the_list_may_have_other_names(name: str):
    said = turns(("human", "a"), ("gpt", "b"))["conversations"]
    assert messages_of({name: said}) == (Message("user", "a"), Message("assistant", "b"))


def test_system_and_tools_stand_beside():
    conversation = read(turns(("human", "a"), ("gpt", "b"), system="Be short.", tools=json.dumps([BARE])))
    assert conversation.messages[0] == Message("system", "Be short.")
    assert conversation.tools == ({"type": "function", "function": BARE},)


def test_calls_and_the_text_before_them_are_one_message():
    call = json.dumps(BARE)
    said = turns(
        ("human", "a"),
        ("gpt", "<think>add</think>Let me see."),
        ("function_call", call),
        ("function_call", [BARE]),
        ("observation", {"sum": 4}),
        ("function_call", json.dumps([BARE, BARE])),
        ("observation", "4"),
        ("gpt", "4"),
    )
    whole = "<think>add</think>Let me see."
    assert messages_of(said)[1:] == (
        Message("assistant", "Let me see.", "add", (CALL, CALL), text_with_reasoning=whole),
        Message("tool", '{"sum": 4}'),
        Message("assistant", "", None, (CALL, CALL)),
        Message("tool", "4"),
        Message("assistant", "4"),
    )


def test_text_and_its_calls_are_rendered_as_one_turn(shared: Path):
    template = jinja2.Environment().from_string((shared / "templates/qwen3.jinja").read_text())
    said = turns(("human", "a"), ("gpt", "Let me see."), ("function_call", json.dumps(BARE)))
    messages = [dataclasses.asdict(message) for message in messages_of(said)]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    assert template.render(messages=messages, tools=None).endswith(f"Let me see.\n{call}<|im_end|>\n")


def test_text_behind_a_call_is_a_message_of_its_own():
    said = turns(("human", "a"), ("function_call", json.dumps(BARE)), ("gpt", "Wait."), ("human", "b"))
    assert messages_of(said)[1:3] == (Message("assistant", "", None, (CALL,)), Message("assistant", "Wait."))


def test_turns_may_have_weights():
    said = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b", "weight": 0},
        {"from": "function_call", "value": BARE, "train": False},
    ]
    assert messages_of({"conversations": said})[1] == Message("assistant", "b", None, (CALL,), loss_weight=0)


def test_what_is_passed_over_is_named():
    fields = turns(("human", "a"), ("gpt", "b"), id=1)
    fields["conversations"][0]["markdown"] = {"answer": "c"}
    assert unread(fields) == ["conversations[].markdown", "id"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"conversations": []}, "no messages; write messages or remove the record"),
        (turns(("human", "a")), "no assistant turn; add an answer or remove the record"),
        (
            turns(("bot", "a")),
            "conversations[0]: unknown speaker 'bot'; use system, human, gpt, function_call or observation",
        ),
        (
            {"conversations": [{"value": "a"}]},
            "conversations[0] has no 'from'; use system, human, gpt, function_call or observation",
        ),
        ({"conversations": [{"from": "gpt"}]}, "conversations[0] has no 'value'; add it"),
        (
            turns(("function_call", "f(1)")),
            "conversations[0].value is no tool call in JSON (broken JSON at character 1: expecting value); "
            'write {"name": …, "arguments": {…}}',
        ),
        (turns(("function_call", "[]")), "conversations[0] calls no tool; write a call or remove it"),
        (turns(("gpt", " ")), "conversations[0]: empty answer; write an answer or remove the record"),
        (
            {
                "conversations": [
                    {"from": "gpt", "value": "a"},
                    {"from": "function_call", "value": BARE, "weight": 0},
                ]
            },
            "conversations[1] has another loss weight than the text before it, and both are one turn; "
            "give both the same",
        ),
        (
            turns(("system", "a"), ("gpt", "b"), system="c"),
            "both a field 'system' and a system message; keep one of them",
        ),
    ],
)
def test_each_refusal_in_full(fields: dict[str, Any], expected: str):
    assert refusal(fields, "sharegpt") == expected


def test_real_files_are_read(shared: Path):
    calls = 0
    for name, num_records, named in (("sharegpt_dummy_500", 500, ["id"]), ("toolcall_sharegpt_300", 300, [])):
        records = list(read_records(shared / "data" / f"{name}.json"))
        assert len(records) == num_records
        for record in records:
            assert isinstance(record, Record)
            conversation = read(record.fields)
            assert len(conversation.messages) == len(record.fields["conversations"])
            assert bool(conversation.tools) == bool(json.loads(record.fields.get("tools", "[]")))
            assert unread(record.fields) == named
            calls += sum(len(message.tool_calls) for message in conversation.messages)
    assert calls == 211
