"""encode_chat gives library users the documents that training would use."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tests.chat import TEMPLATES, save_tokenizer, tiny_definition, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from finetooth.base.errors import ConfigError, DataError
from finetooth.data import encode
from finetooth.data.encode import encode_chat
from finetooth.data.tokenizer.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "3 apples?"}, {"role": "assistant", "content": "27"}]


def fast_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tiny_definition()),
        eos_token="<|end_of_text|>",
        bos_token="<s>",
        chat_template=chat_template,
    )


def target_text(tokenizer: Tokenizer, token_ids: np.ndarray, loss_weights: np.ndarray) -> str:
    return tokenizer.decode(token_ids[loss_weights > 0].tolist())


def test_every_kind_of_tokenizer_gives_the_same_document(tmp_path: Path):
    folder = save_tokenizer(tmp_path, tiny_definition(), eos_token="<|end_of_text|>", bos_token="<s>")
    [expected] = encode_chat(tiny_tokenizer(), TALK)
    assert target_text(tiny_tokenizer(), expected.token_ids, expected.loss_weights) == "27<|im_end|>"
    for tokenizer in (folder, str(folder), fast_tokenizer()):
        [document] = encode_chat(tokenizer, TALK)
        assert document.token_ids.tolist() == expected.token_ids.tolist()
        assert document.loss_weights.tolist() == expected.loss_weights.tolist()


def test_the_ids_are_those_of_transformers():
    for name, text in TEMPLATES.items():
        tokenizer = fast_tokenizer(text)
        template = "chatml" if text is None else "auto"
        if text is None:
            tokenizer.chat_template = encode.resolve_template("chatml", tiny_tokenizer()).jinja_text
        [document] = encode_chat(tokenizer, TALK, template=template)
        assert document.token_ids.tolist() == tokenizer.apply_chat_template(TALK, return_dict=False), name
        prompt = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, return_dict=False)
        assert document.token_ids[: document.prompt_length].tolist() == prompt


def test_a_generation_prompt_is_all_context():
    [document] = encode_chat(tiny_tokenizer(), TALK[:1], add_generation_prompt=True)
    [whole] = encode_chat(tiny_tokenizer(), TALK)
    assert document.token_ids.tolist() == whole.token_ids[: whole.prompt_length].tolist()
    assert document.prompt_length == len(document.token_ids)
    assert document.num_targets == 0
    assert (document.token_ids.dtype, document.loss_weights.dtype) == (np.int32, np.float32)


def test_every_option_reaches_the_documents():
    two = [*TALK, {"role": "user", "content": "More?"}, {"role": "assistant", "content": "No"}]
    tokenizer = tiny_tokenizer()
    [document] = encode_chat(tokenizer, two, loss_on="last")
    assert target_text(tokenizer, document.token_ids, document.loss_weights) == "No<|im_end|>"
    [document] = encode_chat(tokenizer, TALK, template="concat")
    assert target_text(tokenizer, document.token_ids, document.loss_weights) == "27<|end_of_text|>"
    text = (
        "{{ mood }}{{ tools[0].name if tools }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>"
        "{% endfor %}{{ '<|im_start|>' if add_generation_prompt }}"
    )
    [document] = encode_chat(
        tiny_tokenizer(text), TALK, tools=[{"name": "search"}], template_args={"mood": "calm"}
    )
    assert tokenizer.decode(document.token_ids.tolist()).startswith("calmsearch<|im_start|>3 apples?")
    assert len(encode_chat(tiny_tokenizer(TEMPLATES["rewriting"]), two)) == 2


def test_text_becomes_the_control_tokens_that_are_allowed():
    talk = [TALK[0], {"role": "assistant", "content": "so <think>"}]
    think = tiny_tokenizer().control_tokens["<think>"]
    for allowed, count in (([], 0), (["<think>"], 1)):
        [document] = encode_chat(tiny_tokenizer(), talk, allow_tokens=allowed)
        assert document.token_ids.tolist().count(think) == count


def test_reasoning_of_a_text_stands_in_prompt_and_target_alike():
    """chatml has no place for reasoning, so what was split off a text goes back into it."""
    thought = {"role": "assistant", "content": "<think>\nAdd.\n</think>\n\n27"}
    two = [TALK[0], thought, {"role": "user", "content": "More?"}, TALK[1]]
    tokenizer = tiny_tokenizer()
    [document] = encode_chat(tokenizer, two, train_reasoning=False)
    assert target_text(tokenizer, document.token_ids, document.loss_weights) == "27<|im_end|>27<|im_end|>"
    [document] = encode_chat(tokenizer, two)
    targets = target_text(tokenizer, document.token_ids, document.loss_weights)
    assert targets == "<think>\nAdd.\n</think>\n\n27<|im_end|>27<|im_end|>"
    [prompt] = encode_chat(tokenizer, two[:3], add_generation_prompt=True)
    assert prompt.token_ids.tolist() == document.token_ids[: document.prompt_length].tolist()


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (TALK[:1], "messages: no assistant turn; add an answer or remove the record"),
        (
            [TALK[0], {"role": "assistant", "content": " "}],
            "messages: messages[1]: empty answer; write an answer or remove the record",
        ),
        (
            [{"role": "robot", "content": "a"}],
            "messages: messages[0]: unknown role 'robot'; use system, user, assistant or tool",
        ),
        (
            [TALK[0], TALK[1] | {"reasoning_content": "so"}],
            "messages: messages[1] (assistant): the template leaves out its reasoning_content; "
            "use one that writes it, or put it into the content as <think>…</think>",
        ),
    ],
)
def test_messages_that_give_no_document(messages: list[dict[str, Any]], expected: str):
    with pytest.raises(DataError) as caught:
        encode_chat(tiny_tokenizer(), messages)
    assert str(caught.value) == expected


def test_a_folder_that_holds_no_tokenizer(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        encode_chat(tmp_path, TALK)
    expected = f"tokenizer: {tmp_path} has no tokenizer.json; name a folder that holds a tokenizer"
    assert str(caught.value) == expected


def test_a_tokenizer_of_transformers_is_read_once_and_again_when_it_changed(monkeypatch: pytest.MonkeyPatch):
    reads: list[str | None] = []
    honest = Tokenizer.from_transformers
    monkeypatch.setattr(
        Tokenizer, "from_transformers", lambda given: (reads.append(given.chat_template), honest(given))[1]
    )
    tokenizer = fast_tokenizer()
    encode_chat(tokenizer, TALK)
    encode_chat(tokenizer, TALK)
    assert reads == [None]
    tokenizer.chat_template = TEMPLATES["trimming"]
    [document] = encode_chat(tokenizer, TALK)
    assert document.token_ids[0] == tokenizer.bos_token_id
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    encode_chat(tokenizer, TALK)
    assert len(reads) == 3
    kept = len(encode._taken_over)  # pyright: ignore[reportPrivateUsage]
    del tokenizer, document
    gc.collect()
    assert len(encode._taken_over) < kept, "it lives no longer than its tokenizer"  # pyright: ignore[reportPrivateUsage]


def test_tokens_that_the_tokenizer_lacks_are_not_made_up():
    """A library user's model has no embedding for them."""
    with pytest.raises(ConfigError) as caught:
        encode_chat(tiny_tokenizer(), TALK, template="six-token")
    assert str(caught.value) == (
        "template: six-token writes <SOU> <EOU> <SOA> <EOA> <SOT> <EOT>, which the tokenizer lacks; "
        "add them to it and to the model (tokenizer.add_tokens), or use another template"
    )
