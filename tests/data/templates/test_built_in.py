"""The built-in templates write what their formats say, and a tokenizer is given the tokens it lacks."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tests.chat import conversation, tiny_definition, tiny_tokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from finetooth.base.errors import ConfigError, DataError
from finetooth.data.masks.masking import Refusal, render_documents
from finetooth.data.records import Conversation, Message, Origin, Role
from finetooth.data.templates.built_in import BUILT_IN
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.files import TokenizerFiles
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer

SIX_TOKENS = ["<SOU>", "<EOU>", "<SOA>", "<EOA>", "<SOT>", "<EOT>"]


def talk(*messages: tuple[Role, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in messages), Origin("test.jsonl", 1))


def written(template: Template, item: Conversation) -> tuple[str, str]:
    """The text of an item's one document, and that of its targets."""
    [documents] = render_documents([item], template)
    assert not isinstance(documents, Refusal), documents
    [document] = documents
    decode = template.tokenizer.decode
    return decode(document.token_ids.tolist()), decode(document.token_ids[document.loss_weights > 0].tolist())


def refused(template: Template, item: Conversation) -> str:
    [refusal] = render_documents([item], template)
    assert isinstance(refusal, Refusal)
    return refusal.reason


TURNS = talk(("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6"))


def test_six_token_writes_its_format():
    template = resolve_template("six-token", tiny_tokenizer())
    with_system = Conversation((Message("system", "Be kind."), *TURNS.messages), TURNS.origin)
    text = "<SOU>2+2?<EOU>\n<SOA>4<EOA>\n\n<SOU>3+3?<EOU>\n<SOA>6<EOA>"
    assert written(template, TURNS) == (text, "4<EOA>6<EOA>")
    assert written(template, with_system) == ("<SOT>Be kind.<EOT>\n\n" + text, "4<EOA>6<EOA>")
    kind = resolve_template("six-token", tiny_tokenizer(), system="Be kind.")
    assert written(kind, TURNS) == ("<SOT>Be kind.<EOT>\n\n" + text, "4<EOA>6<EOA>")


def test_headers_are_plain_text_and_every_turn_ends_with_the_end_token():
    template = resolve_template("headers", tiny_tokenizer())
    end = "<|end_of_text|>"
    text = f"<|user|>\n2+2?{end}<|assistant|>\n4{end}<|user|>\n3+3?{end}<|assistant|>\n6{end}"
    assert written(template, TURNS) == (text, f"4{end}6{end}")
    [[document]] = render_documents([TURNS], template)
    assert (document.token_ids == template.tokenizer.eos_token_id).sum() == 4
    kind = resolve_template("headers", tiny_tokenizer(), system="Be kind.")
    assert written(kind, TURNS)[0] == f"<|system|>\nBe kind.{end}{text}"


def test_concat_writes_a_prompt_a_response_and_the_end_token():
    template = resolve_template("concat", tiny_tokenizer())
    assert written(template, conversation("2+2?", "4")) == ("2+2?4<|end_of_text|>", "4<|end_of_text|>")
    assert not template.takes_turns
    assert all(resolve_template(name, tiny_tokenizer()).takes_turns for name in BUILT_IN if name != "concat")


@pytest.mark.parametrize(
    ("name", "item", "reason"),
    [
        (
            "six-token",
            talk(("user", "a"), ("user", "b"), ("assistant", "c")),
            "six-token takes a system text",
        ),
        ("six-token", talk(("assistant", "c")), "six-token answers a user only"),
        ("six-token", talk(("user", "a"), ("system", "b"), ("assistant", "c")), "six-token takes a system"),
        ("headers", talk(("user", "a"), ("tool", "b"), ("assistant", "c")), "headers has no header for the"),
        ("concat", TURNS, "concat takes one prompt and one response, nothing else"),
        ("concat", talk(("system", "a"), ("user", "a"), ("assistant", "c")), "concat takes one prompt and"),
    ],
)
def test_conversations_that_a_format_has_no_place_for(name: str, item: Conversation, reason: str):
    template = resolve_template(name, tiny_tokenizer())
    assert refused(template, item).startswith(f"the template refuses it: {reason}")


def test_a_prompt_ends_with_a_question():
    template = resolve_template("six-token", tiny_tokenizer())
    with pytest.raises(DataError, match="six-token answers a user only"):
        encode_prompt(template, [Message("system", "a")])


# Tokens that are added.


def test_tokens_that_a_tokenizer_lacks_follow_its_largest_id_in_a_fixed_order():
    base = tiny_tokenizer()
    template = resolve_template("six-token", base)
    assert template.added_tokens == tuple(SIX_TOKENS)
    assert [template.tokenizer.control_tokens[name] for name in SIX_TOKENS] == list(
        range(base.largest_id + 1, base.largest_id + 7)
    )
    assert template.tokenizer.vocab_size == base.vocab_size + 6
    for name in SIX_TOKENS:
        assert template.tokenizer.backend.encode(name).ids == [template.tokenizer.control_tokens[name]]
    assert template.tokenizer.encode_text("<SOU>") == base.encode_text("<SOU>"), "text stays text"
    again = resolve_template("six-token", template.tokenizer)
    assert (again.added_tokens, again.tokenizer) == ((), template.tokenizer)
    assert base.control_tokens.keys().isdisjoint(SIX_TOKENS)


def test_only_the_tokens_that_are_missing_are_added():
    definition = json.loads(tiny_definition())
    definition["added_tokens"] = [t for t in definition["added_tokens"] if t["content"] != "<|im_end|>"]
    for index, token in enumerate(definition["added_tokens"]):
        token["id"] = len(definition["model"]["vocab"]) + index
    template = resolve_template("chatml", Tokenizer(TokenizerFiles(definition, {})))
    assert template.added_tokens == ("<|im_end|>",)
    assert template.stop_token_ids == (template.tokenizer.largest_id,)
    assert written(template, conversation("a", "b"))[1] == "b<|im_end|>"


def test_a_name_in_the_vocabulary_becomes_a_token_with_the_id_it_has():
    definition = json.loads(tiny_definition())
    vocabulary = definition["model"]["vocab"]
    definition["added_tokens"] = []
    token_id = vocabulary["<SOU>"] = len(vocabulary)
    base = Tokenizer(TokenizerFiles(definition, {}))
    template = resolve_template("six-token", base)
    assert template.added_tokens == tuple(SIX_TOKENS[1:])
    assert template.tokenizer.control_tokens["<SOU>"] == token_id
    assert written(template, conversation("a <SOU>", "b"))[0] == "<SOU>a <SOU><EOU>\n<SOA>b<EOA>"


def _tokenizer_with_bos(tmp_path: Path, **settings: Any) -> Tokenizer:
    """Pieces begin with ▁ as SentencePiece's do, and only the first word of a text is given one."""
    plain = tokenizers.Tokenizer(models.Unigram())
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    plain.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    plain.train_from_iterator(["two and two is four, said <|user|> and <|assistant|>"] * 8, trainer)
    bos = plain.token_to_id("<s>")
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    plain.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("prompt", ["two and", " two", "  two", "and <s> two"])
def test_concat_begins_as_the_tokenizer_begins_a_text(tmp_path: Path, prompt: str):
    tokenizer = _tokenizer_with_bos(tmp_path)
    template = resolve_template("concat", tokenizer)
    token_ids = encode_prompt(template, [Message("user", prompt)])
    if "<s>" not in prompt:
        assert token_ids == tokenizer.backend.encode(prompt).ids
    assert token_ids.count(tokenizer.control_tokens["<s>"]) == 1


def test_every_template_brings_its_own_beginning_and_never_two(tmp_path: Path):
    own = "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    tokenizer = _tokenizer_with_bos(tmp_path, chat_template=own)
    bos = tokenizer.control_tokens["<s>"]
    expected = {"auto": 1, "headers": 1, "concat": 1, "chatml": 0, "six-token": 0}
    for name, num_bos in expected.items():
        template = resolve_template(name, tokenizer)
        [[document]] = render_documents([conversation("two", "four")], template)
        assert (document.token_ids == bos).sum() == num_bos
        assert (document.token_ids[0] == bos) == (num_bos == 1)


# Several templates of one tokenizer.

DEFAULT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
NAMED = {"tool_use": DEFAULT + "<s>", "rag": "<s>" + DEFAULT}


def _with_templates(default: str | None) -> Tokenizer:
    return Tokenizer(TokenizerFiles(json.loads(tiny_definition()), {}, default, NAMED))


def test_the_default_is_taken_and_others_where_they_are_named():
    tokenizer = _with_templates(DEFAULT)
    assert resolve_template("auto", tokenizer).jinja_text == DEFAULT
    template = resolve_template("own:rag", tokenizer)
    assert (template.name, template.jinja_text) == ("own:rag", NAMED["rag"])


@pytest.mark.parametrize(
    ("name", "default", "sentence"),
    [
        (
            "auto",
            None,
            "the tokenizer has several templates of its own, and none of them is the default; "
            "write one of own:rag, own:tool_use",
        ),
        ("own:rug", DEFAULT, "the tokenizer has no template 'rug' of its own; write own:rag, own:tool_use"),
    ],
)
def test_a_template_that_is_not_there(name: str, default: str | None, sentence: str):
    with pytest.raises(ConfigError) as caught:
        resolve_template(name, _with_templates(default))
    assert str(caught.value) == f"data.template: {sentence}"
