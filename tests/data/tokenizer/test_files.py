"""The files of a tokenizer are read in every layout, and what cannot be read is said in one sentence."""

import json
from pathlib import Path

import pytest
import tokenizers
from tests.chat import SAMPLE, save_tokenizer, tiny_definition, tiny_tokenizer

from finetooth.base.errors import ConfigError
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(folder), place="model.path")
    return str(caught.value)


def test_the_template_stands_in_its_own_file_or_in_the_settings(tmp_path: Path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    folder = save_tokenizer(tmp_path / "list", tiny_definition(), chat_template=named)
    assert load_tokenizer(str(folder)).chat_template == "plain"
    folder = save_tokenizer(tmp_path / "other list", tiny_definition(), chat_template=named[:1])
    assert load_tokenizer(str(folder)).chat_template is None
    folder = save_tokenizer(tmp_path / "file", tiny_definition(), chat_template="settings")
    (folder / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert load_tokenizer(str(folder)).chat_template == "file"
    folder = save_tokenizer(tmp_path / "none", tiny_definition())
    assert load_tokenizer(str(folder)).chat_template is None


def test_further_templates_have_names(tmp_path: Path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    folder = save_tokenizer(tmp_path, tiny_definition(), chat_template=named)
    assert load_tokenizer(str(folder)).named_templates == {"tool_use": "tools"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("search", encoding="utf-8")
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("file", encoding="utf-8")
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.chat_template, tokenizer.named_templates) == (
        "plain",
        {"tool_use": "file", "rag": "search"},
    )


def test_they_are_where_transformers_puts_them(tmp_path: Path):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(tiny_definition()))
    reference.chat_template = {"default": "plain", "rag": "search"}
    reference.save_pretrained(tmp_path)
    for tokenizer in (load_tokenizer(str(tmp_path)), Tokenizer.from_transformers(reference)):
        assert (tokenizer.chat_template, tokenizer.named_templates) == ("plain", {"rag": "search"})


def test_special_tokens_come_from_either_file(tmp_path: Path):
    folder = save_tokenizer(tmp_path, tiny_definition(), eos_token="<|im_end|>")
    special_tokens = {"eos_token": "<s>", "pad_token": {"content": "<|end_of_text|>"}}
    (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens), encoding="utf-8")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|end_of_text|>"}


def test_tokens_that_only_the_settings_name_become_control_tokens(tmp_path: Path):
    definition = json.loads(tiny_definition())
    end = definition["added_tokens"].pop()
    decoder = {str(end["id"]): {"content": end["content"], "special": True}}
    definition["added_tokens"].pop(0)
    definition["model"]["vocab"]["<|end_of_text|>"] = definition["added_tokens"][0]["id"] - 1
    folder = save_tokenizer(
        tmp_path, json.dumps(definition), eos_token="<|end_of_text|>", added_tokens_decoder=decoder
    )
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.control_tokens == tiny_tokenizer().control_tokens
    assert tokenizer.backend.encode("</tool_call>").ids == [end["id"]]


def test_a_special_token_that_no_file_defines(tmp_path: Path):
    folder = save_tokenizer(tmp_path, tiny_definition(), eos_token="<end>", pad_token="<pad>")
    assert refusal(folder) == (
        "model.path: its eos_token '<end>' is not among its tokens; "
        "add it to tokenizer.json, or correct tokenizer_config.json\n"
        "model.path: its pad_token '<pad>' is not among its tokens; "
        "add it to tokenizer.json, or correct tokenizer_config.json"
    )


def test_files_that_hold_no_tokenizer(tmp_path: Path):
    broken = save_tokenizer(tmp_path / "broken", "{")
    assert refusal(broken) == (
        f"model.path: {broken / 'tokenizer.json'} cannot be read (Input data was truncated); "
        "repair or replace the file"
    )
    listed = save_tokenizer(tmp_path / "listed", "[]")
    assert refusal(listed) == (
        f"model.path: {listed / 'tokenizer.json'} holds no JSON object; repair or replace the file"
    )
    empty = save_tokenizer(tmp_path / "empty", "{}")
    assert refusal(empty) == (
        f"model.path: {empty / 'tokenizer.json'} holds no tokenizer; repair or replace the file"
    )


def test_folders_without_a_tokenizer(tmp_path: Path):
    assert refusal(tmp_path) == (
        f"model.path: {tmp_path} has no tokenizer.json; name a folder that holds a tokenizer"
    )
    missing = tmp_path / "missing"
    assert refusal(missing) == (
        f"model.path: {missing}: no such folder; name an existing folder or a hub repository"
    )


def test_a_tokenizer_in_an_older_layout_is_converted(tmp_path: Path):
    plain = tokenizers.Tokenizer.from_str(tiny_definition())
    plain.model.save(str(tmp_path))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end_of_text|>", "unk_token": None}
    settings |= {"bos_token": "<|end_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"<|end_of_text|>": len(vocabulary)}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode_text(SAMPLE)) == SAMPLE
    assert tokenizer.eos_token_id == len(vocabulary)
    assert tokenizer.folder is not None
    assert (tokenizer.folder / "tokenizer.json").is_file()
    assert not (tmp_path / "tokenizer.json").exists()


def test_a_tokenizer_that_cannot_be_converted(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    said = refusal(tmp_path)
    assert said.startswith(
        f"model.path: {tmp_path} has no tokenizer.json, and transformers cannot convert it: "
    )
    assert said.endswith("; save it with transformers as a fast tokenizer first")
    assert "\n" not in said
