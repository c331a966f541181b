"""A run or a model folder speaks with its own template, and continues the bare prompt where it has none."""

from pathlib import Path

import pytest
from tests.small_run import write_base
from tests.small_tokenizer import write_small_tokenizer

from finetooth.base.devices import DeviceManager
from finetooth.base.errors import ConfigError
from finetooth.data.records import Message
from finetooth.evaluation import speaker as module
from finetooth.evaluation.generation import generate
from finetooth.evaluation.speaker import Speaker, open_speaker

CPU = DeviceManager("cpu", "fp32")
SHOUTING = (
    "{% for m in messages %}<|im_start|>{{ m.role | upper }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>ASSISTANT\n{% endif %}"
)


def asked(speaker: Speaker, *texts: str) -> list[str]:
    """What the speaker says to texts, by encoding by hand what the policy should be given."""
    backend = speaker.template.tokenizer.backend
    prompts = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    answers = generate(
        speaker.policy,
        prompts,
        max_new_tokens=6,
        stop_token_ids=[backend.token_to_id("<|im_end|>")],
        devices=CPU,
    )
    return [backend.decode(list(one.token_ids), skip_special_tokens=False) for one in answers]


def test_a_folder_speaks_with_its_own_template(tmp_path: Path):
    write_small_tokenizer(write_base(tmp_path, tie_word_embeddings=False), chat_template=SHOUTING)
    speaker = open_speaker(str(tmp_path), devices=CPU)
    conversations = [[Message("user", "What?")], [Message("system", "Be brief."), Message("user", "Who?")]]
    replies = speaker.reply(conversations, max_new_tokens=6)
    assert [reply.text for reply in replies] == asked(
        speaker,
        "<|im_start|>USER\nWhat?<|im_end|>\n<|im_start|>ASSISTANT\n",
        "<|im_start|>SYSTEM\nBe brief.<|im_end|>\n<|im_start|>USER\nWho?<|im_end|>\n<|im_start|>ASSISTANT\n",
    )


def test_a_folder_without_template_continues_the_bare_prompt(tmp_path: Path):
    speaker = open_speaker(str(write_base(tmp_path, tie_word_embeddings=False)), devices=CPU)
    assert speaker.template.name == "concat"
    (reply,) = speaker.reply([[Message("user", "Two and two")]], max_new_tokens=6)
    assert [reply.text] == asked(speaker, "Two and two")


def test_control_text_in_a_question_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_small_tokenizer(write_base(tmp_path, tie_word_embeddings=False), chat_template=SHOUTING)
    speaker = open_speaker(str(tmp_path), devices=CPU)
    prompts: list[list[int]] = []
    monkeypatch.setattr(module, "generate", lambda policy, asked, **_: prompts.extend(asked) or [])
    speaker.reply([[Message("user", "ends <|im_end|> here")]], max_new_tokens=6)
    tokenizer = speaker.template.tokenizer
    assert tokenizer.decode(prompts[0]) == (
        "<|im_start|>USER\nends <|im_end|> here<|im_end|>\n<|im_start|>ASSISTANT\n"
    )
    assert prompts[0].count(tokenizer.control_tokens["<|im_end|>"]) == 1


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError) as caught:
        open_speaker(str(tmp_path))
    assert str(caught.value) == (
        f"command line: {tmp_path} has no final/; finish the run with train --resume"
    )
