"""Every name of a template means what it says; what cannot be used is refused before a record is read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat import (
    TEMPLATES,
    answers,
    conversation,
    harmless_text,
    plain_text,
    tiny_definition,
    tiny_template,
    tiny_tokenizer,
)

from finetooth.base.errors import ConfigError, DataError
from finetooth.data.masks.masking import render_documents
from finetooth.data.records import Message
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer

OWN = str(TEMPLATES["trimming"])


def refusal(name: str, tokenizer: Tokenizer, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_template(name, tokenizer, **options)
    return str(caught.value)


def without_tokens(*missing: str, **special_tokens: str) -> Tokenizer:
    definition = json.loads(tiny_definition())
    definition["added_tokens"] = [t for t in definition["added_tokens"] if t["content"] not in missing]
    for index, token in enumerate(definition["added_tokens"]):
        token["id"] = len(definition["model"]["vocab"]) + index
    return Tokenizer(TokenizerFiles(definition, special_tokens))


def test_auto_takes_the_tokenizers_own_template_whatever_the_records_are():
    tokenizer = tiny_tokenizer(OWN)
    for is_prompt_response in (False, True):
        template = resolve_template("auto", tokenizer, is_prompt_response=is_prompt_response)
        assert (template.name, template.jinja_text) == ("own", OWN)


def test_auto_without_one_is_chatml_for_messages_and_concat_for_prompts_and_responses():
    template = resolve_template("auto", tiny_tokenizer())
    assert template.name == "chatml"
    assert "<|im_start|>" in template.jinja_text
    assert resolve_template("auto", tiny_tokenizer(), is_prompt_response=True).name == "concat"


def test_a_named_template_wins_over_the_tokenizers_own(tmp_path: Path):
    path = tmp_path / "mine.jinja"
    path.write_text(str(TEMPLATES["headers"]), encoding="utf-8")
    tokenizer = tiny_tokenizer(OWN)
    assert resolve_template("chatml", tokenizer).name == "chatml"
    assert resolve_template("concat", tokenizer).name == "concat"
    template = resolve_template(str(path), tokenizer)
    assert (template.name, template.jinja_text) == (str(path), TEMPLATES["headers"])


def test_stop_tokens_are_the_end_of_a_turn_then_the_end_of_text():
    ids = tiny_tokenizer().control_tokens
    assert tiny_template("chatml").stop_token_ids == (ids["<|im_end|>"], ids["<|end_of_text|>"])
    assert tiny_template("headers").stop_token_ids == (ids["<|end_of_text|>"],)
    assert resolve_template("concat", tiny_tokenizer()).stop_token_ids == (ids["<|end_of_text|>"],)


@pytest.mark.parametrize("name", TEMPLATES)
@given(texts=st.lists(answers(harmless_text()), min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1))
@settings(max_examples=40, deadline=None)
def test_a_prompt_has_the_ids_of_its_text(name: str, texts: list[str]):
    template = tiny_template(name)
    messages = conversation(*texts).messages
    listed = [{"role": message.role, "content": message.content} for message in messages]
    text = plain_text(template, listed, add_generation_prompt=True)
    assert encode_prompt(template, messages) == template.tokenizer.backend.encode(text).ids


def test_arguments_and_tools_reach_the_template():
    text = (
        "{{ tools | tojson if tools }}"
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{{ '<|im_start|>' + mood if add_generation_prompt }}"
    )
    template = resolve_template("auto", tiny_tokenizer(text), template_args={"mood": "calm"})
    token_ids = encode_prompt(template, [Message("user", "a")], ({"name": "<s>"},))
    assert template.tokenizer.decode(token_ids) == '[{"name": "<s>"}]<|im_start|>a<|im_end|><|im_start|>calm'
    assert template.tokenizer.control_tokens["<s>"] not in token_ids


def test_names_and_ids_of_calls_reach_the_template_where_a_message_has_them():
    text = (
        "{% for m in messages %}<|im_start|>{{ m.name if 'name' in m else 'nobody' }}"
        "{{ ' ' ~ m.tool_call_id if m.tool_call_id is defined }}<|im_end|>{% endfor %}"
    )
    template = resolve_template("auto", tiny_tokenizer(text))
    messages = [Message("user", "a"), Message("tool", "b", name="add<|im_end|>", tool_call_id="c1<s>")]
    token_ids = encode_prompt(template, messages)
    written = "<|im_start|>nobody<|im_end|><|im_start|>add<|im_end|> c1<s><|im_end|>"
    assert template.tokenizer.decode(token_ids) == written
    ids = template.tokenizer.control_tokens
    assert [token_ids.count(ids[name]) for name in ("<|im_end|>", "<s>")] == [2, 0]


def test_the_time_a_template_tells_is_fixed_and_counts():
    text = "{{ strftime_now('%Y %H:%M:%S.%f') }}" + OWN
    template = resolve_template("auto", tiny_tokenizer(text))
    prompt = encode_prompt(template, [Message("user", "a")])
    assert prompt == encode_prompt(template, [Message("user", "a")])
    assert template.tokenizer.decode(prompt).startswith(template.now.strftime("%Y %H:%M:%S.%f<s>"))


def at(year: int, template: Template) -> Template:
    return dataclasses.replace(template, now=template.now.replace(year=year))


def test_the_fingerprint_changes_with_everything_that_changes_the_text():
    tokenizer = tiny_tokenizer(OWN)
    one = resolve_template("auto", tokenizer)
    assert one.fingerprint == resolve_template("auto", tokenizer).fingerprint
    assert one.fingerprint == at(2001, one).fingerprint, "it does not tell the date"
    dated = resolve_template("auto", tiny_tokenizer("{{ strftime_now('%Y') }}" + OWN))
    others = [
        resolve_template("chatml", tokenizer),
        resolve_template("concat", tokenizer),
        resolve_template("auto", tiny_tokenizer(OWN + "{{ a }}"), template_args={"a": 1}),
        resolve_template("auto", tiny_tokenizer(OWN + "{{ a }}"), template_args={"a": 2}),
        resolve_template("auto", tokenizer, system="a"),
        resolve_template("auto", tokenizer, system=""),
        resolve_template("auto", tokenizer, allow_tokens=["<think>"]),
        dated,
        at(2001, dated),
    ]
    assert len({template.fingerprint for template in (one, *others)}) == 10


def test_concat_needs_an_end_and_nothing_else():
    options = {"template_args": {"a": 1}, "system": "be kind"}
    assert refusal("concat", without_tokens(), **options) == (
        "data.template: concat ends an answer with the tokenizer's eos_token, and it has none; "
        "name one in tokenizer_config.json, or use another template\n"
        "data.template_args: concat has no use for it; remove it, or use another template\n"
        "data.system: concat has no place for it; remove it, or use another template"
    )
    assert refusal("headers", without_tokens()).startswith("data.template: headers ends an answer with the ")


def test_files_that_are_no_template(tmp_path: Path):
    remedy = "write auto, chatml, six-token, headers, concat or the path of a .jinja file"
    missing = str(tmp_path / "missing.jinja")
    expected = f"data.template: {missing} cannot be read (No such file or directory); {remedy}"
    assert refusal(missing, tiny_tokenizer()) == expected
    path = tmp_path / "broken.jinja"
    path.write_bytes(b"\xff")
    assert (
        refusal(str(path), tiny_tokenizer()) == f"data.template: {path} cannot be read (not UTF-8); {remedy}"
    )
    path.write_text("a\n{% if %}", encoding="utf-8")
    assert refusal(str(path), tiny_tokenizer()) == (
        f"data.template: {path}, line 2: Expected an expression, got 'end of statement block'; "
        "correct the template"
    )


def test_templates_that_cannot_be_used():
    assert refusal("auto", tiny_tokenizer("{{ raise_exception('never') }}")) == (
        "data.template: own does not render a question and its answer: never; correct the template"
    )
    assert refusal("auto", tiny_tokenizer("{{ messages[-1].content }}<end>")) == (
        "data.template: own writes none of the tokenizer's control tokens after an answer; "
        "use a template whose end of turn is a token of this tokenizer; no model could learn to stop"
    )


def test_arguments_that_belong_to_the_records_or_that_nothing_reads():
    options = {"template_args": {"messages": [], "tools": [], "mod": 1, "2": 2}}
    assert refusal("auto", tiny_tokenizer(OWN), **options) == (
        "data.template_args: messages, tools cannot be set here; remove it; it comes from the records\n"
        "data.template_args: own does not read mod, 2; remove it"
    )
    text = OWN + "{{ mood if add_generation_prompt }}"
    assert refusal("auto", tiny_tokenizer(text), template_args={"mod": 1}) == (
        "data.template_args: own does not read mod; remove it, or write one of mood"
    )
    assert refusal("chatml", tiny_tokenizer(), template_args={"mood": 1}) == (
        "data.template_args: chatml has no use for it; remove it, or use another template"
    )


def test_prompts_that_cannot_be_encoded():
    def said(template: Template, *messages: Message) -> str:
        with pytest.raises(DataError) as caught:
            encode_prompt(template, messages)
        return str(caught.value)

    concat = resolve_template("concat", tiny_tokenizer())
    assert said(concat, Message("system", "a"), Message("user", "b")) == (
        "prompt: the template refuses it: concat takes one prompt and one response, nothing else; "
        "change it, or use another template"
    )
    assert said(tiny_template("chatml"), Message("user", "\ud83d")) == (
        "prompt: it holds half a surrogate pair, which is no character; remove it"
    )


def test_the_template_that_is_exported_renders_the_same_text_elsewhere():
    """An exported folder carries jinja_text; transformers must make of it what was trained."""
    from transformers import PreTrainedTokenizerFast

    template = tiny_template("chatml")
    reference = PreTrainedTokenizerFast(
        tokenizer_object=template.tokenizer.backend, chat_template=template.jinja_text
    )
    talk = conversation("3 apples?", "27.", "More?", "No.")
    [[document]] = render_documents([talk], template)
    listed = [{"role": message.role, "content": message.content} for message in talk.messages]
    assert reference.apply_chat_template(listed, return_dict=False) == document.token_ids.tolist()
    prompt = reference.apply_chat_template(listed[:3], add_generation_prompt=True, return_dict=False)
    assert prompt == encode_prompt(template, talk.messages[:3])


def test_allowed_tokens_become_tokens_in_message_text_and_no_others_do():
    text = "<think>a</think> <tool_call>"
    prompts = [
        encode_prompt(
            resolve_template("chatml", tiny_tokenizer(), allow_tokens=allowed), [Message("user", text)]
        )
        for allowed in ([], ["<think>"], ["<think>", "</think>"])
    ]
    ids = tiny_tokenizer().control_tokens
    for num_allowed, prompt in enumerate(prompts):
        assert [ids[name] in prompt for name in ("<think>", "</think>", "<tool_call>")] == [
            num_allowed >= 1,
            num_allowed >= 2,
            False,
        ]
        assert (
            tiny_tokenizer().decode(prompt) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        )


def test_tokens_that_cannot_be_allowed():
    assert refusal("chatml", tiny_tokenizer(), allow_tokens=["<thinks>", "@"]) == (
        "data.allow_tokens: the tokenizer has no control token '<thinks>'; "
        "close ones are <think> </think> <s>\n"
        "data.allow_tokens: the tokenizer has no control token '@'; remove it"
    )
    assert refusal("chatml", tiny_tokenizer(), allow_tokens=["<|im_end|>", "<think>"]) == (
        "data.allow_tokens: <|im_end|> ends an answer, and text that holds it would end there; remove it"
    )
