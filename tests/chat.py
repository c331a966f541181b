"""A small tokenizer made here, templates of different habits, and a naive account of what they train."""

import functools
import json
import string
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import decoders, models, pre_tokenizers, trainers

from finetooth.data.records import Conversation, Message, Origin, Role
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer

CONTROL_TOKENS = (
    *("<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<s>"),
    *("<tool_call>", "</tool_call>"),
)
SAMPLE = """Tom has 3 apples and buys 48/2 = <<48/2=24>>24 more.\n\nHow many apples does he have?  The answer
is 27, so Tom has 27 apples.\n#### 27\n\n\n\tif x < y: print("<", '>', [1, 2])   # häßlich, naïve, 日本語 😀
"""
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEMPLATES = {
    "chatml": None,
    # Cuts whitespace at the edges and begins with a token of its own.
    "trimming": "{% for m in messages %}{{ bos_token if loop.first }}<|im_start|>{{ m['role'] }}\n\n"
    "{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}",
    # Shows the reasoning of the last answer only, as Qwen3's template does.
    "rewriting": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # Plain words instead of control tokens, one macro, joined by `~`; nothing behind the end of a turn.
    "headers": "{% macro turn(role, text) %}{{ '<|' ~ role ~ '|>\n' ~ text }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m.role, m.content) }}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
}


@functools.cache
def tiny_definition() -> str:
    """A byte-level BPE tokenizer.json with the control tokens above, trained on a few lines."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE] * 4, trainer)
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return tokenizer.to_str()


@functools.cache
def tiny_unigram() -> str:
    """A tokenizer.json in the manner of SentencePiece, whose vocabulary holds its control tokens too."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    alphabet = sorted(set(SAMPLE + string.printable) - set(string.whitespace))
    special = ["<unk>", *CONTROL_TOKENS]
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=special,
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE] * 4, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer.to_str()


@functools.cache
def tiny_tokenizer(chat_template: str | None = None) -> Tokenizer:
    special_tokens = {"bos_token": "<s>", "eos_token": "<|end_of_text|>"}
    return Tokenizer(TokenizerFiles(json.loads(tiny_definition()), special_tokens, chat_template))


@functools.cache
def tiny_template(name: str) -> Template:
    """One of the templates above, for the tokenizer above."""
    if TEMPLATES[name] is None:
        return resolve_template(name, tiny_tokenizer())
    return resolve_template("auto", tiny_tokenizer(TEMPLATES[name]))


def save_tokenizer(folder: Path, definition: str, **settings: Any) -> Path:
    """Writes a tokenizer's files; the settings go into tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def conversation(*texts: str, roles: tuple[Role, ...] = ("user", "assistant")) -> Conversation:
    """Messages with these texts, their roles in turn."""
    messages = tuple(Message(roles[i % len(roles)], text) for i, text in enumerate(texts))
    return Conversation(messages, Origin("test.jsonl", 1))


def plain_text(template: Template, messages: list[dict[str, Any]], **variables: Any) -> str:
    """What an ordinary Jinja environment makes of messages."""
    return _plainly_compiled(template.jinja_text or "").render(
        messages=messages, **template.tokenizer.special_tokens, **template.arguments, **variables
    )


def plain_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Messages as transformers takes them."""
    listed: list[dict[str, Any]] = []
    for message in conversation.messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning_content is not None:
            entry["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            entry["tool_calls"] = list(message.tool_calls)
        listed.append(entry)
    return listed


def naive_spans(
    template: Template, conversation: Conversation, stop: str
) -> tuple[str, list[tuple[int, int]]]:
    """The whole text, and in it each answer with its end, from the characters alone.

    Holds for templates that do not rewrite history, and messages without control strings.
    """
    messages = plain_messages(conversation)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            begin = len(plain_text(template, messages[:index], add_generation_prompt=True))
            through = plain_text(template, messages[: index + 1], add_generation_prompt=False)
            spans.append((begin, through.index(stop, begin) + len(stop)))
    return plain_text(template, messages, add_generation_prompt=False), spans


def harmless_text(**options: Any) -> st.SearchStrategy[str]:
    """Text of all scripts without a control string in it."""
    pieces = st.one_of(
        st.text(max_size=6),
        st.sampled_from([" ", "\n", "\n\n", "  ", "\t", "3 apples", "<", ">", "|", "<|", "é"]),
    )
    joined = st.lists(pieces, max_size=6).map("".join)
    return joined.filter(lambda text: not any(token in text for token in CONTROL_TOKENS))


def wild_text() -> st.SearchStrategy[str]:
    """Text with control strings, whole, doubled and cut in pieces, and private-use characters."""
    control = st.sampled_from(CONTROL_TOKENS)
    cut = st.builds(lambda token, place: token[: place % len(token)], control, st.integers(0, 12))
    rest = st.builds(lambda token, place: token[place % len(token) :], control, st.integers(0, 12))
    private = st.characters(min_codepoint=0xF0000, max_codepoint=0xF000F)
    pieces = st.one_of(control, cut, rest, private, st.text(max_size=4), st.sampled_from([" ", "\n", "a"]))
    return st.lists(pieces, min_size=1, max_size=6).map("".join)


def answers(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts that are not blank."""
    return texts.map(lambda text: text if text.strip() else text + "x")


@functools.cache
def _plainly_compiled(jinja_text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(jinja_text)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
