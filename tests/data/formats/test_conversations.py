"""What every answer goes through: thinking at its start becomes its reasoning, and renders as before."""

from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.records import messages_of

from finetooth.data.records import Message

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
ASK = {"role": "user", "content": "2+2?"}


def assistant(**fields: Any) -> Message:
    """The assistant's message behind a question."""
    return messages_of({"messages": [ASK, {"role": "assistant", **fields}]}, "messages")[1]


def test_thinking_at_the_start_of_an_answer_is_its_reasoning():
    text = "\n<think>\n2+2=4\n\n</think>\n\n 4\n"
    assert assistant(content=text) == Message("assistant", " 4\n", "2+2=4", text_with_reasoning=text)
    calling = assistant(content="<think>add</think>", tool_calls=[CALL])
    assert calling == Message("assistant", "", "add", (CALL,), text_with_reasoning="<think>add</think>")
    # the first end ends it, and nothing is lost
    text = "<think>a<think>b</think>c</think>d"
    assert assistant(content=text) == Message(
        "assistant", "c</think>d", "a<think>b", text_with_reasoning=text
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "4 <think>2+2</think>"},
        {"content": "<think>2+2 is 4"},
        {"content": "<think>a</think>4", "reasoning_content": "add"},
    ],
)
def test_other_text_stays_as_it_is(fields: dict[str, Any]):
    message = assistant(**fields)
    assert message.content == fields["content"]
    assert message.reasoning_content == fields.get("reasoning_content")
    assert message.text_with_reasoning is None


# What Qwen3's template does with an answer: reasoning of its own, or taken from the text.
THINKING = """
{%- for message in messages %}{% set content = message.content %}
{%- if message.reasoning_content is string %}{% set reasoning = message.reasoning_content %}
{%- elif '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- else %}{% set reasoning = '' %}{% endif %}
{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') + '<|im_end|>' }}
{%- endfor %}"""


@given(
    *[st.text(alphabet="a \n\t<>/", max_size=8)] * 3,
    st.sampled_from(["", " ", "\n", "\n\n", " \n"]),
)
def test_parted_reasoning_renders_as_the_whole_text_does(before: str, inside: str, behind: str, leading: str):
    text = f"{leading}<think>{before}{inside}</think>{behind}4"
    render = jinja2.Environment().from_string(THINKING).render
    message = assistant(content=text)
    assert message.text_with_reasoning == text
    parted = {"content": message.content, "reasoning_content": message.reasoning_content}
    assert render(messages=[parted]) == render(messages=[{"content": text}])


def test_parted_reasoning_renders_as_the_whole_text_does_with_the_real_template(shared: Path):
    template = jinja2.Environment().from_string((shared / "templates/qwen3.jinja").read_text())
    for text in (
        "<think>\na\n</think>\n\n4",
        "<think>a</think>4",
        "\n<think>\n\n</think>\n\n 4 ",
        "<think></think>4",
    ):
        message = assistant(content=text)
        parted = {"content": message.content, "reasoning_content": message.reasoning_content}
        whole = {"role": "assistant", "content": text}
        for behind in ([], [ASK], [{"role": "tool", "content": "4"}, {"role": "assistant", "content": "5"}]):
            rendered = [
                template.render(messages=[ASK, answer, *behind], tools=None)
                for answer in (whole, {"role": "assistant", **parted})
            ]
            assert rendered[0] == rendered[1]


def test_a_user_may_write_of_thinking():
    said = [{"role": "user", "content": "<think>a</think>b"}, {"role": "assistant", "content": "4"}]
    assert messages_of({"messages": said})[0] == Message("user", "<think>a</think>b")
