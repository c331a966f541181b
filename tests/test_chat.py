"""`chat` keeps the conversation, forgets it when asked, and ends with its input."""

from pathlib import Path
from typing import Any

import pytest
from tests.small_run import write_base
from tests.small_tokenizer import write_small_tokenizer
from typer.testing import CliRunner, Result

from finetooth import chat as module
from finetooth.cli import app
from finetooth.data.records import Message
from finetooth.evaluation.speaker import Reply, Speaker

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without a template in `base/`, and one with a template in `tuned/`."""
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base", tie_word_embeddings=False)
    write_small_tokenizer(write_base(tmp_path / "tuned", tie_word_embeddings=False), chat_template=CHATML)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Message]]:
    """What the policy is asked; it answers with the number of the question and stops at the even ones."""
    conversations: list[list[Message]] = []

    def reply(self: Speaker, new: list[list[Message]], *, max_new_tokens: int) -> list[Reply]:
        conversations.extend(list(messages) for messages in new)
        return [Reply(f"[b]{len(conversations)}", stopped=len(conversations) % 2 == 0)]

    monkeypatch.setattr(Speaker, "reply", reply)
    return conversations


def command(*arguments: str, typed: str) -> Result:
    return CliRunner().invoke(
        app, ["chat", *arguments], input=typed, prog_name="finetooth", env={"COLUMNS": "120"}
    )


def texts(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_the_conversation_is_kept_until_it_is_reset(asked: list[list[Message]]):
    result = command("tuned", typed="one\n\n  \ntwo\n/reset\nthree\n")
    assert [texts(messages) for messages in asked] == [
        [("user", "one")],
        [("user", "one"), ("assistant", "[b]1"), ("user", "two")],
        [("user", "three")],
    ]
    assert result.exit_code == 0
    assert result.stdout == ("tuned: /reset forgets, Ctrl-D ends\n> [b]1 …\n> > > [b]2\n> > [b]3 …\n> ")


def test_the_system_text_opens_every_conversation(asked: list[list[Message]]):
    assert command("tuned", "--system", "Be brief.", typed="one\n/reset\ntwo\n").exit_code == 0
    assert [texts(messages) for messages in asked] == [
        [("system", "Be brief."), ("user", "one")],
        [("system", "Be brief."), ("user", "two")],
    ]


def test_without_a_template_every_line_stands_alone(asked: list[list[Message]]):
    result = command("base", typed="one\ntwo\n")
    assert [texts(messages) for messages in asked] == [[("user", "one")], [("user", "two")]]
    assert result.stdout.startswith(
        "base: /reset forgets, Ctrl-D ends; no chat template: every line stands alone\n"
    )


def test_neither_an_answer_nor_a_name_drives_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def reply(self: Speaker, new: list[list[Message]], *, max_new_tokens: int) -> list[Reply]:
        return [Reply("red \x1b[31m\x07 " + "word " * 40 + "\nend", stopped=True)]

    monkeypatch.setattr(Speaker, "reply", reply)
    (tmp_path / "tuned").rename(tmp_path / "a\x1b[31m")
    result = command("a\x1b[31m", typed="one\n")
    assert result.stdout == (
        "a\\x1b[31m: /reset forgets, Ctrl-D ends\n> red \\x1b[31m\\x07 " + "word " * 40 + "\nend\n> "
    )


def test_a_real_policy_answers(monkeypatch: pytest.MonkeyPatch):
    told: list[Any] = []
    original = Speaker.reply

    def reply(self: Speaker, *arguments: Any, **options: Any) -> list[Reply]:
        told.append((options, original(self, *arguments, **options)))
        return told[-1][1]

    monkeypatch.setattr(Speaker, "reply", reply)
    result = command("tuned", "--max-new-tokens", "4", typed="What is two?\n")
    ((options, (answer,)),) = told
    assert result.exit_code == 0
    assert options == {"max_new_tokens": 4}
    assert answer.text in result.stdout


def test_a_system_text_that_the_template_cannot_take_is_a_mistake():
    result = command("base", "--system", "Be brief.", typed="one\n")
    assert (result.exit_code, result.stderr, result.stdout) == (
        2,
        "--system: base has no chat template to put it in; leave it out\n",
        "",
    )


def test_a_system_text_that_a_template_refuses_is_told_before_the_first_line(tmp_path: Path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    write_small_tokenizer(tmp_path / "tuned", chat_template=refusing)
    result = command("tuned", "--system", "Be brief.", typed="one\n")
    assert (result.exit_code, result.stderr, result.stdout) == (
        2,
        "--system: the template of tuned cannot take it; leave it out\n",
        "",
    )


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch):
    def interrupt(console: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_read", interrupt)
    result = command("tuned", typed="")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
