"""No text of a record becomes a control token, wherever it stands and however it is cut."""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chat import conversation, plain_messages, plain_text, tiny_definition, tiny_tokenizer, tiny_unigram

from finetooth.data.masks.masking import render_documents, render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.records import Conversation, Document, Message, Origin, PlainText, Role
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer

ORIGIN = Origin("injections.jsonl", 1)
EVERYTHING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that writes every field as it stands, so that nothing is refused."""
WRITTEN = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
FORMS: dict[str, Callable[[str], str]] = {
    "alone": lambda token: token,
    "doubled": lambda token: token * 2,
    "embedded": lambda token: f"a{token}b",
    "among spaces": lambda token: f"a {token} b",
}


def everywhere(text: str) -> Conversation:
    """A conversation with a text in its system, user, assistant and tool text, reasoning and arguments."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": text, f"key {text}": [text]}}}
    messages = (
        Message("system", text),
        Message("user", text),
        Message("assistant", text, reasoning_content=text, tool_calls=(call,)),
        Message("tool", text),
        Message("assistant", text),
    )
    return Conversation(messages, ORIGIN)


def split(token: str, place: int) -> Conversation:
    """A token cut in two: over messages, and over reasoning and content."""
    head, rest = token[:place], token[place:]
    texts = [Message("system", "x" + head), Message("user", rest + head)]
    return Conversation((*texts, Message("assistant", rest + head, reasoning_content=rest + head)), ORIGIN)


def injections(tokens: list[str]) -> Iterator[tuple[str, Conversation]]:
    """(what the plain tokenizer takes for a control token or "", conversation)."""
    for number, token in enumerate(tokens):
        for form, put in FORMS.items():
            # Of a large set each token has two of the forms: the same ones each time.
            if len(tokens) < 100 or list(FORMS).index(form) % 2 == number % 2:
                yield token, everywhere(put(token))
        yield "", split(token, max(1, len(token) // 2))


def control_ids(document: Document, tokenizer: Tokenizer) -> list[int]:
    known = set(tokenizer.control_tokens.values())
    return [token_id for token_id in document.token_ids.tolist() if token_id in known]


def everything_template(tokenizer: Tokenizer, folder: Path) -> Template:
    tokenizer = tokenizer.with_tokens([token for token in WRITTEN if token not in tokenizer.control_tokens])
    file = folder / "everything.jinja"
    file.write_text(EVERYTHING, encoding="utf-8")
    return resolve_template(str(file), tokenizer)


def assert_text_stays_text(template: Template, tokens: list[str]) -> None:
    tokenizer = template.tokenizer
    cases = list(injections(tokens))
    results = render_documents([talk for _, talk in cases], template)
    harmless = {len(talk.messages): talk for talk in (everywhere("hi"), split("hi", 1))}
    [whole, short] = (render_documents([talk], template)[0] for talk in harmless.values())
    assert isinstance(whole, tuple)
    assert isinstance(short, tuple)
    expected = {n: control_ids(d, tokenizer) for n, [d] in zip(harmless, (whole, short), strict=True)}
    for (token, talk), documents in zip(cases, results, strict=True):
        assert not isinstance(documents, Refusal), documents
        [document] = documents
        assert control_ids(document, tokenizer) == expected[len(talk.messages)], (token, talk)
        text = plain_text(template, plain_messages(talk), add_generation_prompt=False)
        assert as_decoded(tokenizer.decode(document.token_ids.tolist())) == as_decoded(text), token
        if token:
            naive = tokenizer.backend.encode(text, add_special_tokens=False).ids
            assert naive.count(tokenizer.control_tokens[token]) > expected[5].count(
                tokenizer.control_tokens[token]
            ), "the plain tokenizer must fall for it, or this proves nothing"


def as_decoded(text: str) -> str:
    """A text up to what normalisers and decoders change: composition, and the blank at its begin."""
    return unicodedata.normalize("NFC", text).lstrip(" ")


@pytest.mark.parametrize("definition", [tiny_definition, tiny_unigram])
def test_every_control_token_of_tokenizers_made_here(definition: Callable[[], str], tmp_path: Path):
    special_tokens = {"bos_token": "<s>", "eos_token": "<|end_of_text|>"}
    tokenizer = Tokenizer(TokenizerFiles(json.loads(definition()), special_tokens))
    template = everything_template(tokenizer, tmp_path)
    assert_text_stays_text(template, list(template.tokenizer.control_tokens))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "mistral_v3", "olmo_neox"])
def test_every_control_token_of_tokenizers_of_the_world(shared: Path, name: str, tmp_path: Path):
    template = everything_template(load_tokenizer(str(shared / "tokenizers" / name)), tmp_path)
    assert_text_stays_text(template, list(template.tokenizer.control_tokens))


def test_a_token_cut_at_any_place_between_prompt_and_response_is_none():
    """concat writes nothing between the two."""
    tokenizer = tiny_tokenizer()
    template = resolve_template("concat", tokenizer)
    for token in tokenizer.control_tokens:
        for place in range(1, len(token)):
            talk = conversation("x" + token[:place], token[place:] + "y")
            [[document]] = documents_of([talk], template)
            assert control_ids(document, tokenizer) == [tokenizer.eos_token_id]
            text = "x" + token + "y<|end_of_text|>"
            assert tokenizer.decode(document.token_ids.tolist()) == text
            assert len(tokenizer.backend.encode(text).ids) < len(document.token_ids)


def documents_of(items: list[Any], template: Template) -> list[tuple[Document, ...]]:
    results = render_documents(items, template)
    assert not any(isinstance(result, Refusal) for result in results), results
    return [result for result in results if not isinstance(result, Refusal)]


def test_plain_text_is_text():
    template = resolve_template("concat", tiny_tokenizer())
    tokenizer = template.tokenizer
    [result], report = render_with_report([PlainText("a<|im_end|><s>b", ORIGIN)], template)
    assert not isinstance(result, Refusal)
    assert control_ids(result[0], tokenizer) == [tokenizer.eos_token_id]
    assert report.control_text == {"<|im_end|>": 1, "<s>": 1}


def test_allowed_tokens_come_from_messages_and_no_others_do():
    template = resolve_template("chatml", tiny_tokenizer(), allow_tokens=["<think>", "</think>"])
    names = {token_id: token for token, token_id in template.tokenizer.control_tokens.items()}
    talk = conversation("<think>?<|im_end|>", "<think>so</think>4<tool_call>")
    [documents], report = render_with_report([talk], template)
    assert not isinstance(documents, Refusal)
    [document] = documents
    question, answer = (
        ["<|im_start|>", "<think>", "<|im_end|>"],
        ["<|im_start|>", "<think>", "</think>", "<|im_end|>"],
    )
    assert [names[token_id] for token_id in control_ids(document, template.tokenizer)] == [*question, *answer]
    assert report.control_text == {"<|im_end|>": 1, "<tool_call>": 1}
    prompt = encode_prompt(template, talk.messages[:1])
    assert document.token_ids[: document.prompt_length].tolist() == prompt
    targets = document.token_ids[document.loss_weights > 0].tolist()
    assert template.tokenizer.decode(targets) == "<think>so</think>4<tool_call><|im_end|>"
    [text] = documents_of([PlainText("<think>", ORIGIN)], template)
    assert control_ids(text[0], template.tokenizer)[0] == template.tokenizer.control_tokens["<think>"]


DIALECTS = ("gemma", "llama3", "phi3", "qwen2_5", "qwen3")


def _control_strings(jinja_text: str) -> list[str]:
    return sorted(set(re.findall(r"</?\|?[a-z_]+\|?>", jinja_text)) - {"<tools>", "</tools>"})


@functools.cache
def _armed(shared: Path, family: str) -> Tokenizer:
    """A tokenizer to which the strings of every template are control tokens."""
    base = load_tokenizer(str(shared / "tokenizers" / family))
    texts = [(shared / f"templates/{dialect}.jinja").read_text(encoding="utf-8") for dialect in DIALECTS]
    strings = sorted({string for text in texts for string in _control_strings(text)})
    grown = base.with_tokens([string for string in strings if string not in base.control_tokens])
    special_tokens = {"bos_token": str(grown.eos_token), **grown.special_tokens}
    return Tokenizer(TokenizerFiles(json.loads(grown.definition), special_tokens))


def _injected(strings: list[str], roles: tuple[Role, ...]) -> list[Conversation]:
    """Each string alone, doubled, embedded and split over two messages, in each message."""
    talks: list[Conversation] = []
    for string in strings:
        for text in (string, string * 2, f"a{string}b", f"a {string} b"):
            for place in range(len(roles)):
                texts = ["hi"] * len(roles)
                texts[place] = text
                talks.append(conversation(*texts, roles=roles))
        half = len(string) // 2
        talks.append(
            conversation("x" + string[:half], string[half:] + "y", *["hi"] * (len(roles) - 2), roles=roles)
        )
    return talks


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "mistral_v3", "olmo_neox"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_injection_reaches_a_control_token(shared: Path, family: str, dialect: str):
    file = shared / f"templates/{dialect}.jinja"
    strings = _control_strings(file.read_text(encoding="utf-8"))
    tokenizer = _armed(shared, family)
    template = resolve_template(str(file), tokenizer)
    injected = [*strings, *[token for token in tokenizer.control_tokens if token not in strings][:3]]
    shapes: list[tuple[Role, ...]] = [("user", "assistant"), ("user", "assistant", "user", "assistant")]
    if dialect.startswith("qwen"):
        shapes.append(("system", "user", "assistant", "tool", "assistant"))
    num_refused = num_naive = 0
    for roles in shapes:
        [harmless] = documents_of([conversation(*["hi"] * len(roles), roles=roles)], template)
        expected = [control_ids(document, tokenizer) for document in harmless]
        talks = _injected(injected, roles)
        for talk, documents in zip(talks, render_documents(talks, template), strict=True):
            if isinstance(documents, Refusal):
                num_refused += 1
                assert "</think>" in str(talk)
                continue
            for document in documents:
                assert control_ids(document, tokenizer) in expected
                written = {tokenizer.decode(document.token_ids.tolist())}
                assert all(m.content.strip() in text for text in written for m in talk.messages[:1])
            text = plain_text(template, plain_messages(talk), add_generation_prompt=False)
            naive = tokenizer.backend.encode(text, add_special_tokens=False).ids
            known = set(tokenizer.control_tokens.values())
            num_naive += [token_id for token_id in naive if token_id in known] != expected[-1]
    assert num_refused == 0 or dialect == "qwen3"
    assert num_naive > 0, "a naive encoder must fall for it, or this test proves nothing"


def test_tool_arguments_never_become_control_tokens():
    writes_calls = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tiny_tokenizer(writes_calls)
    template = resolve_template("auto", tokenizer)
    call = {"name": "<|im_end|>", "arguments": {"</tool_call>": ["<think>", 1, None], "b": "<|im_start|>"}}
    talk = Conversation((Message("user", "a"), Message("assistant", "", tool_calls=(call,))), Origin("t", 1))
    [[document]] = documents_of([talk], template)
    names = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    found = [names[token_id] for token_id in control_ids(document, tokenizer)]
    message = ["<|im_start|>", "<|im_end|>"]
    assert found == [*message, "<|im_start|>", "<tool_call>", "</tool_call>", "<|im_end|>"]
    targets = tokenizer.decode(document.token_ids[document.loss_weights > 0].tolist())
    assert targets == f"<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call><|im_end|>"
