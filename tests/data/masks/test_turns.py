"""Everything that cannot be proved is refused, with the whole sentence that says so."""

from typing import Any

import pytest
from tests.chat import conversation, tiny_template, tiny_tokenizer

from finetooth.data.masks.masking import RenderReport, render_documents, render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.masks.turns import LossOn, MaskOptions
from finetooth.data.records import Conversation, Message, Origin
from finetooth.data.templates.template import resolve_template

ORIGIN = Origin("t.jsonl", 1)


def chatml(answer: str = "{{ m.content }}", prompt: str = "") -> str:
    """ChatML, with something else in the place of an answer or behind the generation prompt."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        f"{{% if m.role == 'assistant' %}}{answer}{{% else %}}{{{{ m.content }}}}{{% endif %}}<|im_end|>\n"
        f"{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{prompt}{{% endif %}}"
    )


def refusal(template: str, talk: Conversation, loss_on: LossOn = "assistant", **arguments: Any) -> str:
    [result] = render_documents(
        [talk],
        resolve_template("auto", tiny_tokenizer(template), **arguments),
        options=MaskOptions(loss_on=loss_on),
    )
    assert isinstance(result, Refusal), result
    return f"{result.reason}; {result.remedy}"


def with_answer(content: str = "b", **fields: Any) -> Conversation:
    return Conversation((Message("user", "a"), Message("assistant", content, **fields)), ORIGIN)


def test_a_conversation_without_an_answer():
    expected = "no assistant turn: nothing to train; add an answer, or drop the record"
    assert refusal(chatml(), conversation("a")) == expected
    assert refusal(chatml(), Conversation((), ORIGIN)) == expected


def test_an_empty_answer():
    expected = "messages[1] (assistant): empty answer; write an answer, or drop the record"
    assert refusal(chatml(), with_answer(" \n")) == expected
    later = conversation("a", "", "b", "c")
    assert refusal(chatml(), later) == expected
    [result] = render_documents([later], tiny_template("chatml"), options=MaskOptions(loss_on="last"))
    assert not isinstance(result, Refusal), "an answer that is not trained may be empty"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("{{ raise_exception('Only answers of one word') }}", "Only answers of one word"),
        ("{{ m.content + 1 }}", "text and int cannot be added"),
        ("{{ 1 + m.content }}", "text and int cannot be added"),
        ("{{ m.nothing.more }}", "'dict object' has no attribute 'nothing'"),
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
    ],
)
def test_a_template_that_fails(statement: str, said: str):
    template = chatml(f"{{% if m.content == 'b' %}}{statement}{{% endif %}}{{{{ m.content }}}}")
    expected = f"the template refuses it: {said}; change the record, or use another template"
    assert refusal(template, with_answer()) == expected


def test_a_turn_that_does_not_begin_with_the_generation_prompt():
    expected = (
        "messages[1] (assistant): its rendered turn does not begin with the generation prompt; "
        "use a template (or template_args) whose generation prompt begins the turn"
    )
    assert refusal(chatml(prompt="<think>"), with_answer()) == expected
    assert refusal(chatml(prompt="b"), with_answer("c")) == expected


def test_an_answer_that_begins_with_the_words_of_the_generation_prompt_is_not_taken_for_it():
    expected = "messages[1] (assistant): the template leaves out its content; use one that writes it"
    assert refusal(chatml(prompt="Sure"), with_answer("Sure")) == expected


def test_a_turn_without_an_end():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{{ '<|im_end|>' if m.content != 'b' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    expected = (
        "messages[1] (assistant): the template writes no end-of-turn token after it; "
        "use a template that ends every answer"
    )
    assert refusal(template, with_answer()) == expected


def test_text_of_another_message_in_the_answer():
    expected = (
        "messages[1] (assistant): the template writes other text of the record into the answer; "
        "use another template"
    )
    assert refusal(chatml("{{ messages[0].content }}{{ m.content }}"), with_answer()) == expected
    assert refusal(chatml("{{ m.content ~ '%s' % messages[0].content }}"), with_answer()) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "{{ m.content | upper }}",
        "{{ m.content[1:] }}",
        "{{ m.content[:-1] }}",
        "{{ m.content }}{{ m.content }}",
        "{{ m.content[1:] }}{{ m.content[:1] }}",
        "{{ m.content | replace('x', '') }}",
        "{{ m.content.split('b') | join('b') }}",
    ],
)
def test_an_answer_that_the_template_changes(answer: str):
    expected = "messages[1] (assistant): the template changes its content; use another template"
    assert refusal(chatml(answer), with_answer("abc")) == expected


def test_an_answer_with_its_reasoning_inside():
    template = chatml("{{ m.content.split('</think>')[-1] }}")
    expected = (
        "messages[1] (assistant): the template changes its content; "
        "move the text between <think> and </think> into reasoning_content"
    )
    assert refusal(template, with_answer("<think>hm</think>b")) == expected


def test_fields_that_the_template_leaves_out():
    use = "use one that writes it"
    content = "messages[1] (assistant): the template leaves out its content"
    assert (
        refusal(chatml("{{ 'x' if m.content == 'b' else m.content }}"), with_answer()) == f"{content}; {use}"
    )
    reasoning = "messages[1] (assistant): the template leaves out its reasoning_content"
    into = ", or put it into the content as <think>…</think>"
    assert refusal(chatml(), with_answer(reasoning_content="so")) == f"{reasoning}; {use}{into}"
    calls = "messages[1] (assistant): the template leaves out its tool_calls"
    expected = f"{calls}; use one that writes them"
    assert refusal(chatml(), with_answer(tool_calls=({"name": "f"},))) == expected
    assert refusal(chatml(), with_answer("", tool_calls=({"name": "f"},))) == expected


def test_context_that_the_template_leaves_out():
    only_two = (
        "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    system = conversation("be kind", "a", "b", roles=("system", "user", "assistant"))
    expected = "messages[0] (system): the template leaves out its content; use one that writes it"
    assert refusal(only_two, system) == expected
    tool = conversation("a", "b", "c", "d", roles=("user", "assistant", "tool", "assistant"))
    expected = "messages[2] (tool): the template leaves out its content; use one that writes it"
    assert refusal(only_two, tool) == expected
    tools = Conversation(with_answer().messages, ORIGIN, tools=({"name": "f"},))
    assert refusal(only_two, tools) == "the template leaves out the tools; use one that writes them"
    expected = "the template leaves out data.system; remove it, or use another template"
    assert refusal(only_two, with_answer(), system="be kind") == expected


def test_a_last_answer_that_changes_when_a_message_follows():
    template = chatml("{{ m.content }}{{ '!' if loop.last }}")
    talk = conversation("a", "b", "c")
    expected = (
        "the template writes the last answer differently when a message follows it; "
        "end the conversation with the answer"
    )
    assert refusal(template, talk, "all") == expected
    [result] = render_documents([talk], resolve_template("auto", tiny_tokenizer(template)))
    assert not isinstance(result, Refusal), "what follows the last answer is no part of its document"


def test_text_that_cannot_be_encoded():
    expected = (
        "it holds private-use characters of both planes that stand for control tokens; "
        "remove the characters from U+F0000 on"
    )
    assert refusal(chatml(), with_answer("\U000f0001 \U00100001")) == expected
    expected = "it holds half a surrogate pair, which is no character; remove it"
    assert refusal(chatml(), with_answer("\ud83d")) == expected


def test_an_empty_prompt():
    template = resolve_template("concat", tiny_tokenizer())
    assert render_documents([conversation("", "b")], template) == [
        Refusal("an empty prompt: nothing predicts the first token", "write a prompt")
    ]


def test_concat_takes_one_prompt_and_one_response():
    template = resolve_template("concat", tiny_tokenizer())
    expected = Refusal(
        "the template refuses it: concat takes one prompt and one response, nothing else",
        "change the record, or use another template",
    )
    for talk in (
        conversation("a", "b", "c", "d"),
        conversation("s", "a", "b", roles=("system", "user", "assistant")),
    ):
        assert render_documents([talk], template, options=MaskOptions(loss_on="last")) == [expected]


def test_one_bad_record_leaves_the_others_alone():
    talks = [conversation("a", "b"), conversation("a", "\ud83d"), conversation("a", "c")]
    good, bad, other = render_documents(talks, tiny_template("chatml"))
    assert isinstance(bad, Refusal)
    [alone] = render_documents(talks[2:], tiny_template("chatml"))
    assert not isinstance(good, Refusal)
    assert not isinstance(other, Refusal)
    assert not isinstance(alone, Refusal)
    assert other[0].token_ids.tolist() == alone[0].token_ids.tolist()


def test_trimming_is_counted_over_content_and_reasoning():
    template = chatml("<think>{{ m.reasoning_content | trim }}</think>{{ m.content.lstrip() }}")
    talk = with_answer("  b ", reasoning_content="\nso\n\n")
    [result], report = render_with_report([talk], resolve_template("auto", tiny_tokenizer(template)))
    assert not isinstance(result, Refusal)
    assert report == RenderReport(num_trimmed=5, num_seams=0)


@pytest.mark.parametrize(
    ("weights", "loss_on", "num_behind"),
    [
        *(([1, None], "assistant", 1), ([1, None, 0, None], "assistant", 3), ([1, None, 1, None], "last", 1)),
        *(([1], "assistant", 0), ([1, None], "all", 0), ([0, None, 1], "assistant", 0)),
    ],
)
def test_messages_behind_the_last_answer_that_is_trained_are_counted(
    weights: list[float | None], loss_on: LossOn, num_behind: int
):
    rest = [Message("user", "b") if w is None else Message("assistant", "c", loss_weight=w) for w in weights]
    talk = Conversation((Message("user", "a"), *rest), Origin("test.jsonl", 1))
    options = MaskOptions(loss_on=loss_on)
    [result], report = render_with_report([talk], tiny_template("chatml"), options=options)
    assert not isinstance(result, Refusal)
    assert report == RenderReport(num_behind=num_behind)


def test_conversations_with_rewritten_history_and_answers_read_as_reasoning_are_counted():
    thinking = Message("assistant", "b", "so", text_with_reasoning="<think>so</think>b")
    talk = Conversation((Message("user", "a"), thinking) * 2, Origin("test.jsonl", 1))
    [result], report = render_with_report([talk], tiny_template("rewriting"))
    assert not isinstance(result, Refusal)
    assert len(result) == 2
    assert report == RenderReport(num_rewritten=1, num_reasoning=2)
    for loss_on in ("last", "all"):
        [_], report = render_with_report(
            [talk], tiny_template("rewriting"), options=MaskOptions(loss_on=loss_on)
        )
        assert report == RenderReport(num_reasoning=2, num_unwritten=1)
    [_], report = render_with_report([talk], tiny_template("chatml"))
    assert (report.num_rewritten, report.num_reasoning) == (0, 0), "the text stays as it was"


def test_the_system_text_stands_before_conversations_that_have_none():
    tokenizer = tiny_tokenizer()
    template = resolve_template("chatml", tokenizer, system="Be kind.<|im_end|>")
    own = conversation("mine", "a", "b", roles=("system", "user", "assistant"))
    for talk, system in ((conversation("a", "b"), "Be kind.<|im_end|>"), (own, "mine")):
        [[document]] = render_documents([talk], template)
        text = tokenizer.decode(document.token_ids.tolist())
        assert text.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\na<|im_end|>")
        stop = tokenizer.control_tokens["<|im_end|>"]
        assert document.token_ids.tolist().count(stop) == 3
