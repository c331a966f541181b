"""Every tokenizer with every template and every shape of conversation: no target differs from the oracle."""

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from tests.chat import TEMPLATES, plain_messages, tiny_definition, tiny_unigram
from tests.mask_oracle import Expected, Oracle, wrong_targets
from tests.shapes import NAMED, SHAPES, conversation_of

from finetooth.data.formats.reading import settle_format, to_conversation
from finetooth.data.masks.masking import render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.masks.turns import MaskOptions
from finetooth.data.records import Conversation, Document, Origin, Record
from finetooth.data.sources.reading import read_records
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer

ORIGIN = Origin("matrix.jsonl", 1)
SHARED_TEMPLATES = {
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
}
BUILT_IN = {"chatml": "<|im_end|>", "six-token": "<EOA>", "headers": "", "concat": ""}  # "" = the end token
SHARED_CONTROL_TOKENS = (
    *("<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
    *("<SOU>", "<EOU>", "<SOA>", "<EOA>", "<SOT>", "<EOT>"),
)


_NO_REASONING = "messages[1] (assistant): the template leaves out its reasoning_content"
_NO_CALLS = "messages[{}] (assistant): the template leaves out its tool_calls"
_WITHOUT_PLACE_FOR_TOOLS = {
    _NO_REASONING: ("reasoning", "reasoning twice"),
    _NO_CALLS.format(2): ("tools",),
    _NO_CALLS.format(1): ("several calls",),
    "the template leaves out the tools": ("tools unused",),
}
_IN_TURN = "the template refuses it: six-token takes a system text, then user and assistant in turn"
_NO_SYSTEM = "the template refuses it: System role not supported"
_ALTERNATE = "the template refuses it: Conversation roles must alternate user/assistant/user/assistant/..."
_ANOTHER_BEGIN = "messages[2] (assistant): its rendered turn does not begin with the generation prompt"
_ONE_PAIR = (
    "one turn",
    "unicode",
    "very long",
    "code",
    "reasoning",
    "reasoning split off",
    "inline reasoning",
)
REFUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "chatml": _WITHOUT_PLACE_FOR_TOOLS,
    "trimming": _WITHOUT_PLACE_FOR_TOOLS,
    "llama3": _WITHOUT_PLACE_FOR_TOOLS,
    "phi3": _WITHOUT_PLACE_FOR_TOOLS,
    "rewriting": {
        _ANOTHER_BEGIN: ("two answers in a row",),
        _NO_CALLS.format(2): ("tools",),
        _NO_CALLS.format(1): ("several calls",),
        "the template leaves out the tools": ("tools unused",),
    },
    "headers": {
        _NO_REASONING: ("reasoning", "reasoning twice"),
        "the template refuses it: headers has no header for the role tool": ("tools", "several calls"),
        "the template leaves out the tools": ("tools unused",),
    },
    "six-token": {
        _NO_REASONING: ("reasoning", "reasoning twice"),
        _IN_TURN: ("two questions in a row", "tools", "several calls"),
        "the template refuses it: six-token answers a user only": ("two answers in a row",),
        "the template leaves out the tools": ("tools unused",),
    },
    "concat": {
        _NO_REASONING: ("reasoning",),
        "the template leaves out the tools": ("tools unused",),
        "the template refuses it: concat takes one prompt and one response, nothing else": tuple(
            shape for shape in SHAPES if shape not in (*_ONE_PAIR, "tools unused", "ends with user")
        ),
    },
    "gemma": {
        _NO_SYSTEM: ("system", "empty system", "control names in system", "tools"),
        _ALTERNATE: ("two answers in a row", "two questions in a row", "several calls"),
        _NO_REASONING: ("reasoning", "reasoning twice"),
        "the template leaves out the tools": ("tools unused",),
    },
    "qwen2_5": {
        _NO_REASONING: ("reasoning", "reasoning twice"),
        "messages[4] (assistant): the template leaves out its reasoning_content": ("several calls",),
    },
    "qwen3": {
        _ANOTHER_BEGIN: ("two answers in a row",),
        "messages[1] (assistant): the template changes its content": ("inline reasoning",),
    },
}
"""What which template cannot do: the reason of its refusal, and the shapes. All else is proved."""

VARIANTS = {
    "assistant": MaskOptions(),
    "last": MaskOptions(loss_on="last"),
    "answers alone": MaskOptions(train_reasoning=False),
}
"""Options, by what they train; the oracle knows reasoning by its place before the content."""


def expected_of(
    oracle: Oracle, template: Template, talk: Conversation, stop: str, variant: str
) -> list[Expected]:
    weights = [message.loss_weight if message.role == "assistant" else 0 for message in talk.messages]
    trained = [index for index, weight in enumerate(weights) if weight]
    messages = plain_messages(talk)
    reasoning: dict[int, str] = {}
    for index, message in enumerate(talk.messages):
        if message.reasoning_content is not None:
            reasoning[index] = ""
        if message.text_with_reasoning is not None and "reasoning_content" not in template.jinja_text:
            del messages[index]["reasoning_content"]
            messages[index]["content"] = message.text_with_reasoning
            reasoning[index] = message.text_with_reasoning.removesuffix(message.content)
    return oracle.documents(
        template.jinja_text,
        messages,
        list(talk.tools) or None,
        stop=stop or str(template.tokenizer.eos_token),
        trained=trained[-1:] if variant == "last" else trained,
        reasoning=reasoning if variant == "answers alone" else {},
        **template.arguments,
    )


def num_wrong(documents: tuple[Document, ...], expected: list[Expected]) -> int:
    """Positions that differ; documents too many or too few count with all of theirs."""
    pairs = zip(documents, expected, strict=False)
    wrong = sum(wrong_targets(d.token_ids.tolist(), d.loss_weights.tolist(), e) for d, e in pairs)
    wrong += sum(d.prompt_length != e.prompt_length for d, e in zip(documents, expected, strict=False))
    wrong += sum(len(d.token_ids) for d in documents[len(expected) :])
    return wrong + sum(len(e.token_ids) for e in expected[len(documents) :])


def check(oracle: Oracle, template: Template, stop: str) -> dict[str, str]:
    """Holds every shape and variant against the oracle; gives the reasons of what is refused, by shape."""
    refused: dict[str, str] = {}
    for shape in SHAPES:
        talk = conversation_of(shape)
        check_text(oracle, template, talk)
        for variant, options in VARIANTS.items():
            [result], report = render_with_report([talk], template, options=options)
            if isinstance(result, Refusal):
                refused[shape] = result.reason
                continue
            expected = expected_of(oracle, template, talk, stop, variant)
            assert num_wrong(result, expected) == 0, (template.name, shape, variant)
            assert report.num_seams == sum(document.has_seam for document in expected)
            if shape not in NAMED:
                check_ids(oracle, expected)
    return refused


def check_text(oracle: Oracle, template: Template, talk: Conversation) -> None:
    """The rendered text is the one of transformers, and where that refuses, so does the template here."""
    arguments = (template.jinja_text, plain_messages(talk), list(talk.tools) or None)
    try:
        expected = oracle.text(*arguments, **template.arguments)
    except jinja2.TemplateError:
        expected = None
    try:
        rendered = template.render(
            *template.variables(talk.messages, talk.tools), add_generation_prompt=False
        )
    except jinja2.TemplateError:
        rendered = None
    assert (rendered and str.__str__(rendered)) == expected


def check_ids(oracle: Oracle, expected: list[Expected]) -> None:
    """The oracle's own ids are those of the plain tokenizer, but for seams."""
    for document in expected:
        plain = oracle.plain(document.text, add_special_tokens=False)["input_ids"]
        assert (document.token_ids == plain) != document.has_seam


def template_of(name: str, jinja_text: str | None, tokenizer: Tokenizer, folder: Path) -> Template:
    if jinja_text is None:
        return resolve_template(name, tokenizer)
    file = folder / f"{name}.jinja"
    file.write_text(jinja_text, encoding="utf-8")
    return resolve_template(str(file), tokenizer)


@functools.cache
def family(folder: Path) -> tuple[Tokenizer, Oracle]:
    """A tokenizer with the control tokens of all templates, and the oracle for it."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer = tokenizer.with_tokens([t for t in SHARED_CONTROL_TOKENS if t not in tokenizer.control_tokens])
    if tokenizer.bos_token is None:
        special_tokens = {**tokenizer.special_tokens, "bos_token": str(tokenizer.eos_token)}
        tokenizer = Tokenizer(TokenizerFiles(json.loads(tokenizer.definition), special_tokens))
    return tokenizer, Oracle(tokenizer.definition.decode(), tokenizer.special_tokens)


@functools.cache
def tiny_family(definition: Callable[[], str]) -> tuple[Tokenizer, Oracle]:
    """One of the tokenizers made here, as above."""
    special_tokens = {"bos_token": "<s>", "eos_token": "<|end_of_text|>"}
    tokenizer = Tokenizer(TokenizerFiles(json.loads(definition()), special_tokens))
    tokenizer = tokenizer.with_tokens([t for t in SHARED_CONTROL_TOKENS if t not in tokenizer.control_tokens])
    return tokenizer, Oracle(tokenizer.definition.decode(), special_tokens)


def expected_refusals(template: str) -> dict[str, str]:
    return {shape: reason for reason, shapes in REFUSED.get(template, {}).items() for shape in shapes}


@pytest.mark.parametrize("definition", [tiny_definition, tiny_unigram])
@pytest.mark.parametrize("name", {**TEMPLATES, **BUILT_IN})
def test_no_target_is_wrong_with_tokenizers_made_here(definition: Any, name: str, tmp_path: Path):
    tokenizer, oracle = tiny_family(definition)
    text = None if name in BUILT_IN else TEMPLATES[name]
    template = template_of(name, text, tokenizer, tmp_path)
    assert check(oracle, template, BUILT_IN.get(name, "<|im_end|>")) == expected_refusals(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "mistral_v3", "olmo_neox"])
@pytest.mark.parametrize("dialect", {**SHARED_TEMPLATES, **BUILT_IN})
def test_no_target_is_wrong_with_tokenizers_of_the_world(
    shared: Path, name: str, dialect: str, tmp_path: Path
):
    tokenizer, oracle = family(shared / "tokenizers" / name)
    file = shared / f"templates/{dialect}.jinja"
    text = file.read_text(encoding="utf-8") if dialect in SHARED_TEMPLATES else None
    template = template_of(dialect, text, tokenizer, tmp_path)
    stop = {**SHARED_TEMPLATES, **BUILT_IN}[dialect]
    assert check(oracle, template, stop) == expected_refusals(dialect)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dialect"), [("qwen3", "qwen3"), ("olmo_neox", "llama3"), ("mistral_v3", "qwen2_5")]
)
def test_no_target_of_real_records_is_wrong(shared: Path, name: str, dialect: str, tmp_path: Path):
    tokenizer, oracle = family(shared / "tokenizers" / name)
    text = (shared / f"templates/{dialect}.jinja").read_text(encoding="utf-8")
    template = template_of(dialect, text, tokenizer, tmp_path)
    num_checked = num_seams = 0
    for talk in real_conversations(shared):
        for variant, options in VARIANTS.items():
            [result], report = render_with_report([talk], template, options=options)
            if isinstance(result, Refusal):
                assert "the template leaves out" in result.reason
                assert dialect != "qwen3", "this template writes all that these records hold"
                continue
            expected = expected_of(oracle, template, talk, SHARED_TEMPLATES[dialect], variant)
            assert num_wrong(result, expected) == 0, talk.origin
            num_checked += 1
            num_seams += report.num_seams
    assert num_checked > 300
    assert (num_seams > 0) == (name == "olmo_neox"), "its tokens cross the end of llama3's generation prompt"


REAL_FILES = (
    *("toolcall_sharegpt_300.json", "reason_tool_use_50.jsonl"),
    *("alpaca_999.json", "sharegpt_dummy_500.json"),
)


def real_conversations(shared: Path) -> Iterator[Conversation]:
    """Every tenth record of the files at hand."""
    for name in REAL_FILES:
        path = str(shared / "data" / name)
        format = settle_format(read_records(path), path, format="auto", fields=None)
        for record in itertools.islice(read_records(path), 0, None, 10):
            assert isinstance(record, Record)
            talk = to_conversation(record, format=format)
            assert isinstance(talk, Conversation)
            yield talk


@pytest.mark.parametrize("damage", ["shift by one", "no end token", "a control token in text"])
def test_the_comparison_notices(damage: str, tmp_path: Path):
    tokenizer, oracle = tiny_family(tiny_definition)
    template = resolve_template("chatml", tokenizer)
    talk = conversation_of("control names")
    [documents], _ = render_with_report([talk], template)
    assert not isinstance(documents, Refusal)
    expected = expected_of(oracle, template, talk, "<|im_end|>", "assistant")
    assert num_wrong(documents, expected) == 0
    [document] = documents
    token_ids, loss_weights = document.token_ids, document.loss_weights.copy()
    if damage == "shift by one":
        loss_weights = np.roll(loss_weights, 1)
    elif damage == "no end token":
        loss_weights[np.flatnonzero(loss_weights)[-1]] = 0
    else:
        text = oracle.text(template.jinja_text, plain_messages(talk)[:2])
        token_ids = np.array(oracle.plain(text, add_special_tokens=False)["input_ids"], np.int32)
        loss_weights = np.resize(loss_weights, len(token_ids))
    damaged = Document(token_ids, loss_weights, document.prompt_length, ORIGIN)
    assert num_wrong((damaged,), expected) > 0
