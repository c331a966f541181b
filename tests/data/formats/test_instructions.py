"""Prompts and answers in fields of their own become conversations, character by character."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.records import messages_of, read, refusal, unread

from finetooth.data.formats.reading import Format
from finetooth.data.records import Message, Record
from finetooth.data.sources.reading import read_records


def test_prompt_and_response_keep_every_character():
    expected = (Message("user", " 2+2?\n"), Message("assistant", "\n4 "))
    for name in ("response", "completion"):
        assert messages_of({"prompt": " 2+2?\n", name: "\n4 "}) == expected
    assert messages_of({"question": " 2+2?\n", "answer": "\n4 "}) == expected


def test_of_two_names_the_one_that_is_filled_is_read():
    expected = (Message("user", "a"), Message("assistant", "b"))
    assert messages_of({"prompt": "a", "response": "", "completion": "b"}) == expected
    assert messages_of({"prompt": "a", "response": "b", "completion": "b"}) == expected
    names = {"response": "completion"}
    assert messages_of({"prompt": "a", "response": "c", "completion": "b"}, fields=names) == expected


def test_prompt_and_completion_may_be_lists_of_messages():
    fields = {
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "assistant", "content": "c", "weight": 1},
            {"role": "user", "content": "d"},
        ],
        "completion": [{"role": "assistant", "content": "e"}],
    }
    expected = (
        Message("user", "a"),
        Message("assistant", "b", loss_weight=0),
        Message("assistant", "c"),
        Message("user", "d"),
        Message("assistant", "e"),
    )
    assert messages_of(fields) == expected
    assert messages_of({**fields, "completion": "e"}) == expected
    assert messages_of({"prompt": "a", "completion": fields["completion"]}) == (expected[0], expected[4])


def test_instruction_and_addition_are_joined():
    alpaca = {"instruction": "Add.", "input": "2, 2", "output": "4"}
    dolly = {"instruction": "Add.", "context": "2, 2", "response": "4"}
    for fields in (alpaca, dolly):
        assert messages_of(fields)[0].content == "Add.\n\n2, 2"
        assert messages_of(fields, input_join="\n\nInput:\n")[0].content == "Add.\n\nInput:\n2, 2"
        for blank in ("", " \n", None):
            addition = next(name for name in fields if name in ("input", "context"))
            assert messages_of({**fields, addition: blank})[0].content == "Add."
        assert messages_of({**fields, "instruction": ""})[0].content == "2, 2"


def test_history_and_system_text_come_first():
    fields = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    expected = (Message("system", "s"), *_said("a", "b", "c", "d"))
    assert messages_of(fields) == messages_of({**fields, "history": '[["a", "b"]]'}) == expected
    assert messages_of({**fields, "history": None, "system": ""}) == _said("c", "d")


def test_every_one_of_them_may_have_system_text_tools_and_reasoning():
    for fields in (
        {"prompt": "a", "response": "<think>r</think>b"},
        {"question": "a", "answer": "<think>r</think>b"},
        {"instruction": "a", "output": "<think>r</think>b"},
        {"instruction": "a", "response": "<think>r</think>b"},
    ):
        conversation = read({**fields, "system": "s", "tools": [{"name": "f"}]})
        answer = Message("assistant", "b", "r", text_with_reasoning="<think>r</think>b")
        assert conversation.messages == (Message("system", "s"), Message("user", "a"), answer)
        assert conversation.tools == ({"type": "function", "function": {"name": "f"}},)


def test_gsm8k_loses_its_annotations_and_gains_an_answer_tag():
    answer = (
        "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
    )
    assert messages_of({"question": "How many?", "answer": answer})[1].content == (
        "Natalia sold 48/2 = 24 clips in May.\n"
        "Natalia sold 48+24 = 72 clips altogether in April and May.\n<answer>72</answer>"
    )
    short = messages_of({"question": "q", "answer": "#### 1,000 "})[1]
    assert short.content == "<answer>1,000</answer>"


def test_what_is_passed_over_is_named():
    pair = {"prompt": "a", "response": "b", "id": 7, "empty": "", "none": None, "zero": 0}
    assert unread(pair) == ["id", "zero"]
    assert unread({"q": "a", "a": "b", **pair}, fields={"prompt": "q", "response": "a"}) == [
        *("id", "prompt", "response", "zero")
    ]
    assert unread({"question": "a", "answer": "b\n#### 1", "x": [1]}) == ["x"]
    assert unread({"instruction": "a", "context": "b", "response": "c", "category": "d"}) == ["category"]
    assert unread({"instruction": "a", "input": "b", "output": "c", "text": "abc"}) == ["text"]


TEXT = "write it as a text"
WRITE_PROMPT = "write a prompt or remove the record"
WRITE_ANSWER = "write an answer or remove the record"
ADD_FIELD = "add it, or set data.format or data.fields"


@pytest.mark.parametrize(
    ("fields", "format", "message"),
    [
        ({}, "prompt-response", f"no field 'prompt'; it has no fields; {ADD_FIELD}"),
        (
            {"prompt": "a", "b\x1b": 1},
            "prompt-response",
            f"no field 'response'; it has 'prompt', 'b\\x1b'; {ADD_FIELD}",
        ),
        (
            {str(number): "x" * 50 for number in range(9)} | {"x" * 50: 1},
            "alpaca",
            f"no field 'instruction'; it has '0', '1', '2', '3', '4', '5', '6', '7', …; {ADD_FIELD}",
        ),
        ({"prompt": 1, "response": "b"}, None, f"'prompt' is a number instead of a text; {TEXT}"),
        (
            {"prompt": "a", "response": None},
            "prompt-response",
            f"'response' is null instead of a text; {TEXT}",
        ),
        ({"prompt": "a", "response": []}, None, "no messages; write messages or remove the record"),
        ({"prompt": " \n", "response": "b"}, None, f"empty prompt; {WRITE_PROMPT}"),
        ({"prompt": "a", "response": "\t"}, None, f"empty answer; {WRITE_ANSWER}"),
        (
            {"prompt": "a", "response": "b", "completion": "c"},
            None,
            "both 'response' and 'completion'; name one of them in data.fields",
        ),
        (
            {"prompt": "a", "completion": [{"role": "user", "content": "b"}]},
            None,
            "no assistant turn; add an answer or remove the record",
        ),
        (
            {"prompt": "a", "response": "b", "system": 1},
            None,
            f"'system' is a number instead of a text; {TEXT}",
        ),
        ({"instruction": " ", "input": "", "output": "b"}, "alpaca", f"empty prompt; {WRITE_PROMPT}"),
        ({"instruction": "a", "output": ""}, "alpaca", f"empty answer; {WRITE_ANSWER}"),
        (
            {"instruction": "a", "input": ["b"], "output": "b"},
            "alpaca",
            f"'input' is a list instead of a text; {TEXT}",
        ),
        (
            {"instruction": "a", "output": "b", "history": [["c", "d"], ["e"]]},
            "alpaca",
            'history[1] is no pair of texts; write earlier turns as ["question", "answer"]',
        ),
        (
            {"instruction": "a", "output": "b", "history": {"c": "d"}},
            "alpaca",
            "'history' is an object instead of a list; write it as a list",
        ),
        ({"instruction": "a"}, "dolly", f"no field 'response'; it has 'instruction'; {ADD_FIELD}"),
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
        ({"question": "", "answer": "#### 1"}, "gsm8k", f"empty prompt; {WRITE_PROMPT}"),
    ],
)
def test_each_refusal_in_full(fields: dict[str, Any], format: Format | None, message: str):
    assert refusal(fields, format) == message


def test_every_gsm8k_record_is_understood(shared: Path):
    for name, num_records in (("train", 7473), ("test", 1319)):
        records = list(read_records(shared / "data/gsm8k" / f"{name}.jsonl"))
        assert len(records) == num_records
        for record in records:
            assert isinstance(record, Record)
            answer = messages_of(record.fields)[1].content
            source = json.loads(json.dumps(record.fields["answer"]))
            expected = re.sub(r"\n#### (.*)$", r"\n<answer>\1</answer>", re.sub("<<.*?>>", "", source))
            assert [line.rstrip() for line in answer.split("\n")] == [
                line.rstrip() for line in expected.split("\n")
            ]


def test_every_alpaca_record_is_understood(shared: Path):
    records = list(read_records(shared / "data/alpaca_999.json"))
    assert len(records) == 999
    num_joined = 0
    for record in records:
        assert isinstance(record, Record)
        prompt, answer = messages_of(record.fields)
        instruction, addition, output = record.fields.values()
        num_joined += bool(addition)
        assert prompt.content == (f"{instruction}\n\n{addition}" if addition else instruction)
        assert answer.content == output
    assert num_joined == 412


def _said(*texts: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts))
