"""Loss weights, reasoning as context and generation blocks decide which tokens of a turn are targets."""

import itertools
from typing import Any

import numpy as np
import pytest
from tests.chat import conversation, plain_messages, tiny_template, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from finetooth.data.masks.masking import render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.masks.turns import MaskOptions
from finetooth.data.records import Conversation, Document, Message, Origin
from finetooth.data.templates.template import Template, resolve_template

ORIGIN = Origin("t.jsonl", 1)
USER = Message("user", "2+2?")
FOUR = Message("assistant", "\nFour", reasoning_content="two pairs")
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "two"}}}

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template_of(text: str) -> Template:
    return resolve_template("auto", tiny_tokenizer(text))


def blocks(answer: str) -> Template:
    """ChatML with something of generation blocks in the place of an answer."""
    return template_of(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        f"{{% if m.role == 'assistant' %}}{answer}{{% else %}}{{{{ m.content }}}}<|im_end|>\n{{% endif %}}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def weighed(template: Template, *messages: Message, **options: Any) -> list[tuple[float, str]]:
    """The one document of a conversation: each stretch of one loss weight with its text, context left out."""
    talk = Conversation(messages, ORIGIN)
    [documents], _ = render_with_report([talk], template, options=MaskOptions(**options))
    assert not isinstance(documents, Refusal), documents
    [document] = documents
    return stretches(document, template)


def stretches(document: Document, template: Template) -> list[tuple[float, str]]:
    edges = [0, *(np.flatnonzero(np.diff(document.loss_weights)) + 1), len(document.token_ids)]
    return [
        (float(document.loss_weights[a]), template.tokenizer.decode(document.token_ids[a:b].tolist()))
        for a, b in itertools.pairwise(edges)
        if document.loss_weights[a]
    ]


def refusal(template: Template, *messages: Message, **options: Any) -> str:
    [result], _ = render_with_report(
        [Conversation(messages, ORIGIN)], template, options=MaskOptions(**options)
    )
    assert isinstance(result, Refusal), result
    return f"{result.reason}; {result.remedy}"


def test_a_message_has_its_own_loss_weight():
    template = tiny_template("chatml")
    talk = (USER, Message("assistant", "a", loss_weight=0.5), USER, Message("assistant", "b", loss_weight=2))
    assert weighed(template, *talk) == [(0.5, "a<|im_end|>"), (2, "b<|im_end|>")]
    assert weighed(template, *talk, loss_on="last") == [(2, "b<|im_end|>")]


def test_a_loss_weight_of_nought_makes_a_turn_context():
    template = tiny_template("chatml")
    nought, one = Message("assistant", "", loss_weight=0), Message("assistant", "b")
    assert weighed(template, USER, nought, USER, one) == [(1, "b<|im_end|>")]
    assert weighed(template, USER, one, USER, nought) == [(1, "b<|im_end|>")]
    [documents], _ = render_with_report([Conversation((USER, one, USER, nought), ORIGIN)], template)
    assert not isinstance(documents, Refusal)
    text = template.tokenizer.decode(documents[0].token_ids.tolist())
    assert text.endswith("b<|im_end|>\n"), "what follows the last target is no part of the document"


@pytest.mark.parametrize("loss_on", ["assistant", "last", "all"])
def test_without_any_weight_there_is_no_target(loss_on: str):
    silent = [Message(role, "a", loss_weight=0) for role in ("user", "assistant")]
    assert refusal(tiny_template("chatml"), *silent, loss_on=loss_on) == (
        "no target: the loss_weight of all that could be trained is 0; "
        "raise a loss_weight, or drop the record"
    )


def test_loss_on_last_with_a_last_answer_that_is_not_to_be_trained():
    answers = (Message("assistant", "a"), USER, Message("assistant", "b", loss_weight=0))
    assert "no target" in refusal(tiny_template("chatml"), USER, *answers, loss_on="last")


def test_where_all_is_trained_a_weight_holds_for_the_messages_text_and_an_answers_end():
    template = tiny_template("chatml")
    talk = (Message("user", "2+2?", loss_weight=0), Message("assistant", "Four", loss_weight=0.5))
    assert weighed(template, *talk, loss_on="all") == [
        (1, "user\n"),
        (1, "<|im_end|>\n<|im_start|>assistant\n"),
        (0.5, "Four<|im_end|>"),
    ]
    bad = Message("assistant", "Five", loss_weight=0)
    assert weighed(template, USER, bad, USER, Message("assistant", "4"), loss_on="all") == [
        (1, f"user\n{USER.content}<|im_end|>\n<|im_start|>assistant\n"),
        (1, f"\n<|im_start|>user\n{USER.content}<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"),
    ]


def test_reasoning_is_trained_unless_it_is_not_to_be():
    template = template_of(THINKING)
    assert weighed(template, USER, FOUR) == [(1, "<think>\ntwo pairs\n</think>\n\n\nFour<|im_end|>")]
    # One token holds the end of what stands around the reasoning and the answer's own newline: it is trained.
    assert weighed(template, USER, FOUR, train_reasoning=False) == [(1, "\n\n\nFour<|im_end|>")]
    plain = Message("assistant", "Four", reasoning_content="two pairs", loss_weight=0.5)
    assert weighed(template, USER, plain, train_reasoning=False) == [(0.5, "Four<|im_end|>")]


def test_a_turn_without_reasoning_is_trained_whole():
    template = tiny_template("rewriting")
    assert weighed(template, USER, Message("assistant", "Four"), train_reasoning=False) == [
        (1, "<think>\n\n</think>\n\nFour<|im_end|>")
    ]


def test_reasoning_before_calls_ends_where_it_would_end_before_content():
    template = template_of(THINKING)
    thought = Message("assistant", "", reasoning_content="add", tool_calls=(CALL,))
    [(weight, text)] = weighed(template, USER, thought, train_reasoning=False)
    assert weight == 1
    assert text.startswith("<tool_call>{")
    assert text.endswith("}</tool_call><|im_end|>")


def test_where_all_is_trained_reasoning_is_left_out_by_its_own_characters():
    found = weighed(template_of(THINKING), USER, FOUR, loss_on="all", train_reasoning=False)
    assert [text for _, text in found][-2:] == [
        "user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "\n</think>\n\n\nFour<|im_end|>",
    ]


def test_reasoning_that_cannot_be_told_apart():
    expected = (
        "messages[1] (assistant): where its reasoning ends cannot be told in this template; "
        "set data.train_reasoning: true, or use another template"
    )
    behind = THINKING.replace("{{ m.content }}", "{{ m.content if not m.reasoning_content }}").replace(
        "<think>", "{{ m.content }}<think>"
    )
    assert refusal(template_of(behind), USER, FOUR, train_reasoning=False) == expected
    other = THINKING.replace("\n</think>\n\n", "{{ '\n</think>\n\n' if m.content else '</think>' }}")
    thought = Message("assistant", "", reasoning_content="add", tool_calls=(CALL,))
    assert refusal(template_of(other), USER, thought, train_reasoning=False) == expected


def test_reasoning_split_off_a_text_goes_back_where_the_template_has_no_place_for_it():
    text = "<think>\ntwo pairs\n</think>\n\nFour"
    split = Message("assistant", "Four", reasoning_content="two pairs", text_with_reasoning=text)
    for template in (tiny_template("chatml"), template_of(THINKING)):
        assert weighed(template, USER, split) == [(1, f"{text}<|im_end|>")]
        assert weighed(template, USER, split, train_reasoning=False) == [(1, "Four<|im_end|>")]
    upper = template_of(THINKING.replace("{{ m.content }}", "{{ m.content | upper }}"))
    assert "the template changes its content; use another template" in refusal(upper, USER, split)


def test_calls_are_proved_by_their_names_keys_and_texts():
    def only(written: str) -> Template:
        return template_of(THINKING.replace("{{ call | tojson }}", written))

    message = Message("assistant", "", tool_calls=(CALL, CALL))
    assert weighed(only("{{ call.function.name }}{{ call.function.arguments | tojson }}"), USER, message)
    missing = "messages[1] (assistant): the template leaves out {} of its tool_calls; "
    missing += "use one that writes them whole"
    assert refusal(only("{{ call.function.name }}"), USER, message) == missing.format("'two'")
    assert refusal(only("{{ call.function.arguments | tojson }}"), USER, message) == missing.format("'add'")
    once = "{% if loop.first %}{{ call | tojson }}{% endif %}"
    assert refusal(only(once), USER, message) == missing.format("'add'")


def test_a_generation_block_is_honoured_but_for_the_end_token():
    answer = Message("assistant", "Four")
    exact = blocks("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n")
    short = blocks("{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n")
    later = blocks("{{ m.content[:2] }}{% generation %}{{ m.content[2:] }}<|im_end|>\n{% endgeneration %}")
    for template, text, num_other in ((exact, "Four", 0), (short, "Four", 1), (later, "ur", 1)):
        talk = Conversation((USER, answer), ORIGIN)
        [documents], report = render_with_report([talk], template)
        assert not isinstance(documents, Refusal)
        assert stretches(documents[0], template) == [(1, f"{text}<|im_end|>")]
        assert report.num_other_blocks == num_other


def test_targets_within_exact_blocks_are_those_that_transformers_finds():
    template = blocks("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n")
    reference = PreTrainedTokenizerFast(tokenizer_object=template.tokenizer.backend)
    talk = conversation("2+2?", " Four, häßlich", "Sure?", "Yes\n\n")
    found = reference.apply_chat_template(
        plain_messages(talk),
        chat_template=template.jinja_text,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    [[document]], report = render_with_report([talk], template)
    assert document.token_ids.tolist() == found["input_ids"]
    assert document.loss_weights.tolist() == found["assistant_masks"]
    assert report.num_other_blocks == 0


def test_a_turn_without_a_generation_block_is_context():
    template = blocks(
        "{% if loop.last %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
    )
    talk = conversation("a", "first", "b", "second")
    assert weighed(template, *talk.messages) == [(1, "second<|im_end|>")]
    none = blocks(
        "{{ m.content }}<|im_end|>{% if m.content == 'x' %}{% generation %}{% endgeneration %}{% endif %}\n"
    )
    assert refusal(none, USER, Message("assistant", "Four")) == (
        "no target: the template has no generation block around what could be trained; "
        "correct the template's {% generation %} blocks, or drop the record"
    )


def test_a_generation_block_in_a_comment_is_none():
    template = blocks("{# {% generation %} #}{{ m.content }}<|im_end|>\n")
    assert weighed(template, USER, Message("assistant", "Four")) == [(1, "Four<|im_end|>")]


def test_a_generation_block_with_text_of_another_message():
    template = template_of(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert refusal(template, USER, Message("assistant", "Four")) == (
        "messages[0] (user): a generation block of the template holds its text; "
        "correct the template's {% generation %} blocks"
    )
    assert weighed(template, USER, Message("assistant", "Four"), loss_on="all")
