"""`chat` in a pipe: one answer per line and nothing else, commands, and what a conversation becomes."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.small_run import write_base, write_run
from tests.small_tokenizer import write_small_tokenizer
from typer.testing import CliRunner, Result

from finetooth import chat as module
from finetooth.cli import app
from finetooth.data.records import Message
from finetooth.evaluation.speaker import Reply, Speaker, open_base, open_speaker
from finetooth.reporting.chat_screen import ChatScreen

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
    """What is asked; the answer is the number of the question, in two pieces, and stops at the even ones."""
    conversations: list[list[Message]] = []

    def say(
        self: Speaker, new: list[Message], *, max_new_tokens: int, on_text: Callable[[str], object]
    ) -> Reply:
        conversations.append(list(new))
        on_text("[b]")
        on_text(str(len(conversations)))
        return Reply(f"[b]{len(conversations)}", stopped=len(conversations) % 2 == 0)

    monkeypatch.setattr(Speaker, "say", say)
    return conversations


def command(*arguments: str, typed: str | bytes) -> Result:
    return CliRunner().invoke(
        app, ["chat", *arguments], input=typed, prog_name="finetooth", env={"COLUMNS": "120"}
    )


def texts(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_the_conversation_is_kept_until_it_is_reset(asked: list[list[Message]]):
    result = command("tuned", typed="one\n\n  \ntwo\n/reset\nthree")
    assert [texts(messages) for messages in asked] == [
        [("user", "one")],
        [("user", "one"), ("assistant", "[b]1"), ("user", "two")],
        [("user", "three")],
    ]
    assert result.exit_code == 0
    assert (result.stdout, result.stderr) == ("[b]1 …\n[b]2\n[b]3 …\n", "forgotten\n")


def test_the_system_text_opens_every_conversation_until_it_is_changed(asked: list[list[Message]]):
    typed = "one\n/reset\ntwo\n/system Be long.\nthree\n/system\nfour\n"
    assert command("tuned", "--system", "Be brief.", typed=typed).exit_code == 0
    assert [texts(messages)[0] for messages in asked] == [
        ("system", "Be brief."),
        ("system", "Be brief."),
        ("system", "Be long."),
        ("user", "two"),
    ]
    assert [len(messages) for messages in asked] == [2, 2, 4, 5]


def test_without_a_template_every_line_stands_alone(asked: list[list[Message]]):
    result = command("base", typed="one\ntwo\n")
    assert [texts(messages) for messages in asked] == [[("user", "one")], [("user", "two")]]
    assert result.stderr == "no chat template: every line stands alone\n"


def test_two_slashes_begin_a_text(asked: list[list[Message]]):
    assert command("tuned", typed="//reset\n").exit_code == 0
    assert texts(asked[0]) == [("user", "/reset")]


def test_a_conversation_is_saved_as_a_record_and_no_file_is_replaced(
    asked: list[list[Message]], tmp_path: Path
):
    result = command("tuned", "--system", "Be brief.", typed="one\ntwo\n/save talk.jsonl\n/save talk.jsonl\n")
    assert json.loads((tmp_path / "talk.jsonl").read_text()) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "[b]1"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "[b]2"},
        ]
    }
    assert result.exit_code == 2
    assert result.stderr == (
        "saved: talk.jsonl, with 2 answers, 1 of them cut off\n"
        "/save: talk.jsonl is there already; name another file\n"
    )


def test_what_is_saved_is_trained(tmp_path: Path):
    """With the answers of a real policy, which hold whatever it likes."""
    saved = command("tuned", "--max-new-tokens", "6", typed="What?\nWhich?\n/save talk.jsonl\n")
    assert saved.exit_code == 0, saved.stderr
    path = write_run(tmp_path, data={"train": "talk.jsonl", "dev": None, "max_length": 250})
    trained = CliRunner().invoke(
        app, ["train", str(path), "max_steps=1", "row_tokens=256"], prog_name="finetooth"
    )
    assert trained.exit_code == 0, trained.stderr


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            "/quit\n",
            "/quit: no such command; /help lists the commands; a text that begins with / is written with //",
        ),
        ("/save talk.jsonl\n", "/save: nothing was said; ask something first"),
        ("/base\n", "/base: nothing was asked; ask something first"),
        (
            "one\n/base\n",
            "/base: tuned is no run directory, so that its base is not known; "
            "talk to the run, or use finetooth compare",
        ),
        (b"caf\xe9\n", "line: it is not UTF-8; write it in UTF-8"),
    ],
)
def test_a_mistake_in_a_pipe_ends_it(asked: list[list[Message]], typed: str | bytes, told: str):
    result = command("tuned", typed=typed)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, told)


def test_an_answer_that_says_nothing_is_no_record(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Speaker, "say", lambda self, messages, **_: Reply("", stopped=True))
    result = command("tuned", typed="one\n/save talk.jsonl\n")
    told = "/save: no record to train: messages[1]: empty answer; ask again, or /reset"
    assert (result.stdout, result.stderr) == ("\n", told + "\n")


def test_reasoning_goes_back_to_the_template_as_reasoning(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[Message]] = []

    def say(self: Speaker, messages: list[Message], **_: Any) -> Reply:
        asked.append(list(messages))
        return Reply("<think>\n2+2\n</think>\n\n4", stopped=True)

    monkeypatch.setattr(Speaker, "say", say)
    assert command("tuned", typed="one\ntwo\n").exit_code == 0
    assert (asked[1][1].content, asked[1][1].reasoning_content) == ("4", "2+2")
    speaker = open_speaker("tuned")
    assert "<think>\n2+2\n</think>\n\n4" in speaker.template.tokenizer.decode(speaker.encode(asked[1]))


def test_of_a_long_conversation_the_oldest_part_is_left_out_and_told(asked: list[list[Message]]):
    """The model has 256 positions, half of which are kept for an answer; a question takes about 60."""
    result = command("tuned", typed=("number " * 6 + "\n") * 4)
    assert [len(messages) for messages in asked] == [1, 3, 3, 3]
    told = "the model has 256 positions: it is not given the first {} questions and answers\n"
    assert result.stderr == told.format(1) + told.format(2)


def test_a_question_longer_than_the_model_is_refused(asked: list[list[Message]]):
    result = command("tuned", typed="word " * 200 + "\n")
    assert (result.exit_code, asked) == (3, [])
    assert result.stderr.startswith("line: ")
    assert result.stderr.endswith(
        " tokens with its system text, and the model has 256 positions; shorten it\n"
    )


def test_neither_an_answer_nor_a_name_drives_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def say(self: Speaker, messages: object, *, max_new_tokens: int, on_text: Any) -> Reply:
        for piece in ("red \x1b", "[31m\x07 " + "word " * 40, "\nend"):
            on_text(piece)
        return Reply("", stopped=True)

    monkeypatch.setattr(Speaker, "say", say)
    (tmp_path / "tuned").rename(tmp_path / "a\x1b[31m")
    result = command("a\x1b[31m", typed="one\n/base\n")
    assert result.stdout == "red \\x1b[31m\\x07 " + "word " * 40 + "\nend\n"
    assert "a\\x1b[31m is no run directory" in result.stderr


def test_a_real_policy_answers_piece_by_piece_what_it_answers_at_once(monkeypatch: pytest.MonkeyPatch):
    result = command("tuned", "--max-new-tokens", "4", typed="What is two?\n")
    [reply] = open_speaker("tuned").reply([[Message("user", "What is two?")]], max_new_tokens=4)
    assert result.exit_code == 0
    assert result.stdout.startswith(reply.text)


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


def interrupted_at_once(*_: object, **__: object) -> Reply:
    raise KeyboardInterrupt


def test_ctrl_c_in_a_pipe_ends_with_130(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Speaker, "say", interrupted_at_once)
    result = command("tuned", typed="one\n")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_ctrl_c_on_a_terminal_keeps_what_was_written_and_goes_on(monkeypatch: pytest.MonkeyPatch):
    shown = io.StringIO()
    screen = ChatScreen(Console(file=shown, width=80), is_interactive=True)
    talk = module._Talk("tuned", open_speaker("tuned"), screen, 8)

    def interrupted(self: Speaker, messages: object, *, max_new_tokens: int, on_text: Any) -> Reply:
        on_text("half an")
        raise KeyboardInterrupt

    monkeypatch.setattr(Speaker, "say", interrupted)
    talk.take("one")
    assert texts(list(talk.dialogue.messages)) == [("user", "one"), ("assistant", "half an")]
    assert talk.dialogue.num_cut == 1
    monkeypatch.setattr(Speaker, "say", interrupted_at_once)
    talk.take("two")
    assert len(talk.dialogue.messages) == 2
    assert shown.getvalue() == "half an …\n …\n"


@pytest.mark.parametrize("adapter", [{}, {"type": "lora"}], ids=["full", "lora"])
def test_the_base_answers_as_the_policy_would_have_before_its_first_step(
    adapter: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_run(tmp_path, adapter=adapter, training={"max_steps": 2, "learning_rate": 0.05})
    tokenizer = json.loads((tmp_path / "base" / "tokenizer.json").read_text())
    assert tokenizer["added_tokens"].pop()["content"] == "<|im_end|>"  # the template will add it
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    exact = ["exact_match=plain", "exact_match_records=2", "max_new_tokens=8"]
    trained = CliRunner().invoke(app, ["train", str(path), *exact], prog_name="finetooth")
    assert trained.exit_code == 0, trained.stderr
    answers = (tmp_path / "run/samples/step-000000.jsonl").read_text().splitlines()
    speaker = open_speaker("run")
    base = open_base("run", speaker)
    for line in map(json.loads, answers):
        question = line["prompt"].split("\n")[1].removesuffix("<|im_end|>")
        [reply] = base.reply([[Message("user", question)]], max_new_tokens=8)
        assert reply.text == line["generated"]
    result = command("run", "--max-new-tokens", "8", typed="What is 3?\n/base\n/base\n")
    assert result.stderr == "the base model:\nthe base model:\n"
    [reply] = base.reply([[Message("user", "What is 3?")]], max_new_tokens=8)
    assert result.stdout.endswith((reply.text + ("\n" if reply.stopped else " …\n")) * 2)


def test_a_base_that_is_gone_is_told(tmp_path: Path):
    path = write_run(tmp_path, training={"max_steps": 1})
    assert CliRunner().invoke(app, ["train", str(path)], prog_name="finetooth").exit_code == 0
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    result = command("run", "--max-new-tokens", "2", typed="What?\n/base\n")
    assert result.exit_code == 2
    fact = "base: no folder of that name, and not in the local cache, and offline mode is on"
    assert result.stderr.splitlines()[-1] == f"model.path: {fact}; unset HF_HUB_OFFLINE to fetch it"
