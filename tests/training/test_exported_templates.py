"""What `final/` renders with plain transformers is what was trained, for every template and at any time."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tests.documents import small_policy
from tests.small_tokenizer import write_small_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetooth.data.masks.masking import Refusal, render_documents
from finetooth.data.records import Conversation, Message, Origin
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.model.policy import PolicyModel
from finetooth.model.vocabulary import add_rows
from finetooth.training.final import save_final

BUILT_IN = ("chatml", "six-token", "headers", "concat")
OF_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "mistral_v3", "olmo_neox")]
ONE_TURN = [("user", "What is 2 + 2?\n"), ("assistant", " It is 4")]
TURNS = [*ONE_TURN, ("user", "\n\nAnd <|user|> then? é 日本"), ("assistant", "#### 5")]
DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}"
    "{% endif %}{% endif %}<|im_start|>system\nToday Date: {{ date_string }} {{ mood }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ strftime_now('%A') }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {{ strftime_now('%A') }}\n{% endif %}"
)


def tokenizer_folder(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A small tokenizer, without ChatML's tokens where it has a BOS; or one of others."""
    if family not in ("small", "with_bos"):
        return str(request.getfixturevalue("shared") / "tokenizers" / family)
    folder = write_small_tokenizer(tmp_path / "base")
    if family == "with_bos":
        path = Path(folder, "tokenizer.json")
        definition = json.loads(path.read_text())
        start, end, _ = definition["added_tokens"]
        definition["added_tokens"] = [start, {**end, "content": "<s>"}]
        special = {"<s>": {"id": "<s>", "ids": [end["id"]], "tokens": ["<s>"]}}
        parts = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        definition["post_processor"] = {
            "type": "TemplateProcessing",
            "single": parts,
            "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special,
        }
        path.write_text(json.dumps(definition))
        settings = {"eos_token": "<|endoftext|>", "bos_token": "<s>"}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def export(folder: Path, template: Template, policy: PolicyModel | None = None) -> Path:
    save_final(folder / "final", policy=policy or small_policy(), template=template)
    return folder / "final"


def talk(turns: list[tuple[Any, str]]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns), Origin("test.jsonl", 1))


def listed(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("family", ["small", "with_bos", *OF_OTHERS])
def test_built_in_templates_render_the_ids_that_were_trained(
    family: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
):
    system = None if name == "concat" else "Be 'brief'."
    tokenizer = load_tokenizer(tokenizer_folder(family, tmp_path, request))
    template = resolve_template(name, tokenizer, system=system)
    reference = AutoTokenizer.from_pretrained(export(tmp_path, template))
    conversation = talk(ONE_TURN if name == "concat" else TURNS)
    messages = conversation.messages
    prompt = reference.apply_chat_template(
        listed(messages[:-1]), add_generation_prompt=True, return_dict=False
    )
    assert prompt == encode_prompt(template, messages[:-1])
    [documents] = render_documents([conversation], template)
    assert not isinstance(documents, Refusal), documents
    assert documents[-1].token_ids[: documents[-1].prompt_length].tolist() == prompt
    whole = reference.apply_chat_template(listed(messages), return_dict=False)
    assert whole == documents[-1].token_ids.tolist()


def test_a_merge_over_the_end_of_a_prompt_is_what_concat_cannot_express(tmp_path: Path):
    """Its prompts are those of the training, its whole conversations differ where a token would cross."""
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path / "base"))
    template = resolve_template("concat", tokenizer)
    reference = AutoTokenizer.from_pretrained(export(tmp_path, template))
    conversation = talk([("user", "two an"), ("assistant", "d four")])
    [[document]] = render_documents([conversation], template)  # type: ignore[misc]
    prompt = document.token_ids[: document.prompt_length].tolist()
    messages = listed(conversation.messages)
    assert prompt == reference.apply_chat_template(
        messages[:1], add_generation_prompt=True, return_dict=False
    )
    assert prompt == reference("two an")["input_ids"]
    whole = reference.apply_chat_template(messages, return_dict=False)
    assert reference.decode(whole) == reference.decode(document.token_ids.tolist())
    assert whole != document.token_ids.tolist()


# Tokens that were added.


@pytest.mark.parametrize("has_decoder", [False, True])
@pytest.mark.parametrize("tokenizer_class", ["TokenizersBackend", "PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_added_tokens_are_one_token_each_for_plain_transformers(
    tmp_path: Path, tokenizer_class: str, has_decoder: bool
):
    folder = Path(write_small_tokenizer(tmp_path / "base"))
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "tokenizer_class": tokenizer_class}
    if has_decoder:
        settings["added_tokens_decoder"] = {
            str(plain.token_to_id(name)): {"content": name, "special": True}
            for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        }  # type: ignore[assignment]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    template = resolve_template("six-token", load_tokenizer(str(folder)))
    policy = small_policy(vocab_size=plain.get_vocab_size())
    add_rows(policy, template)
    final = export(tmp_path, template, policy)
    reference = AutoTokenizer.from_pretrained(final)
    for name in template.added_tokens:
        token_id = template.tokenizer.control_tokens[name]
        assert reference.encode(name, add_special_tokens=False) == [token_id]
        assert reference.convert_tokens_to_ids(name) == token_id
        assert reference.decode([token_id], skip_special_tokens=True) == ""
    assert len(reference) == template.tokenizer.vocab_size
    again = load_tokenizer(str(final))
    assert again.control_tokens == template.tokenizer.control_tokens
    model = AutoModelForCausalLM.from_pretrained(final)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(reference)
    ids = reference.apply_chat_template([{"role": "user", "content": "two"}], return_tensors="pt")[
        "input_ids"
    ]
    assert model(ids).logits.shape == (1, ids.shape[1], len(reference))


def test_a_name_that_was_plain_vocabulary_is_one_token_too(tmp_path: Path):
    folder = Path(write_small_tokenizer(tmp_path / "base"))
    definition = json.loads((folder / "tokenizer.json").read_text())
    end_of_text, *turns = definition["added_tokens"]
    definition["added_tokens"] = [end_of_text]
    definition["model"]["vocab"] |= {token["content"]: token["id"] for token in (end_of_text, *turns)}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    template = resolve_template("chatml", load_tokenizer(str(folder)))
    assert (template.added_tokens, template.tokenizer.given_tokens) == ((), ("<|im_start|>",))
    reference = AutoTokenizer.from_pretrained(export(tmp_path, template))
    prompt = reference.apply_chat_template(
        [{"role": "user", "content": "two"}], add_generation_prompt=True, return_dict=False
    )
    assert prompt == encode_prompt(template, [Message("user", "two")])
    assert prompt[0] == turns[0]["id"]


# Dates.


def test_a_dated_template_tells_the_time_of_the_training_for_ever(tmp_path: Path):
    folder = write_small_tokenizer(tmp_path / "base", chat_template=DATED)
    then = datetime(2024, 2, 29, 13, 5)
    template = resolve_template("auto", load_tokenizer(folder), template_args={"mood": "calm"}, now=then)
    assert template.date_formats == ("%d %b %Y", "%A")
    reference = AutoTokenizer.from_pretrained(export(tmp_path, template))
    messages = [{"role": "user", "content": "two"}]
    text = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.startswith(
        "<|im_start|>system\nToday Date: 29 Feb 2024 calm<|im_end|>\n<|im_start|>user Thursday"
    )
    ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(template, [Message("user", "two")])
    # what is loaded from final/ and asked another day
    later = resolve_template("auto", load_tokenizer(str(tmp_path / "final")), now=datetime(2031, 1, 1))
    assert encode_prompt(later, [Message("user", "two")]) == ids


def test_the_bare_template_would_tell_another_time(tmp_path: Path):
    """Negative control."""
    folder = write_small_tokenizer(tmp_path / "base", chat_template=DATED)
    tokenizer = load_tokenizer(folder)
    prompts = [
        encode_prompt(resolve_template("auto", tokenizer, now=datetime(year, 1, 1)), [Message("user", "two")])
        for year in (2024, 2031)
    ]
    assert prompts[0] != prompts[1]


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "qwen2_5", "qwen3"])
def test_dates_do_not_touch_templates_that_tell_none(name: str, shared: Path):
    path = str(shared / "templates" / f"{name}.jinja")
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "mistral_v3"))
    tokenizer = tokenizer.with_tokens(["<|eot_id|>", "<end_of_turn>", "<|end|>", "<|im_end|>"])
    one, other = (resolve_template(path, tokenizer, now=datetime(year, 1, 1)) for year in (2024, 2031))
    assert one.fingerprint == other.fingerprint
    assert one.date_formats == ()
