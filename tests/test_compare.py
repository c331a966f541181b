"""`compare` gives both models' answers to every prompt, in order, and shows them side by side."""

import json
from pathlib import Path

import pytest
from tests.small_run import write_base
from typer.testing import CliRunner, Result

from finetooth.base.devices import DeviceManager
from finetooth.cli import app
from finetooth.data.records import Message
from finetooth.evaluation.speaker import Reply, Speaker, open_speaker

PROMPTS = ["What is two?", "Two and two"]


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "one", tie_word_embeddings=False)
    write_base(tmp_path / "two", tie_word_embeddings=False, seed=1)


def command(*arguments: str) -> Result:
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    return CliRunner().invoke(
        app,
        ["compare", "one", "two", *prompts, "--max-new-tokens", "5", *arguments],
        prog_name="finetooth",
        env={"COLUMNS": "120"},
    )


def replies(folder: str) -> list[Reply]:
    speaker = open_speaker(folder, devices=DeviceManager("cpu"))
    return [speaker.reply([[Message("user", prompt)]], max_new_tokens=5)[0] for prompt in PROMPTS]


def test_both_answer_every_prompt_as_each_would_alone():
    result = command("--json")
    assert result.exit_code == 0
    one, two = replies("one"), replies("two")
    assert json.loads(result.stdout) == {
        "first": "one",
        "second": "two",
        "answers": [
            {
                "prompt": prompt,
                "first": {"text": first.text, "stopped": first.stopped},
                "second": {"text": second.text, "stopped": second.stopped},
            }
            for prompt, first, second in zip(PROMPTS, one, two, strict=True)
        ],
    }
    assert [reply.text for reply in one] != [reply.text for reply in two]


def test_people_see_the_answers_side_by_side():
    result = command()
    assert result.exit_code == 0
    header = next(line for line in result.stdout.splitlines() if "prompt" in line)
    assert [cell.strip() for cell in header.split("┃")[1:-1]] == ["prompt", "one", "two"]
    assert all(prompt in result.stdout for prompt in PROMPTS)
    num_unfinished = sum(not reply.stopped for reply in [*replies("one"), *replies("two")])
    assert result.stdout.count("…") == num_unfinished > 0


def test_a_long_word_is_broken_and_not_cut(monkeypatch: pytest.MonkeyPatch):
    def reply(self: Speaker, new: list[list[Message]], *, max_new_tokens: int) -> list[Reply]:
        return [Reply("x" * 300, stopped=True) for _ in new]

    monkeypatch.setattr(Speaker, "reply", reply)
    shown = command().stdout
    assert shown.count("x") == 4 * 300
    assert "…" not in shown


def test_a_prompt_that_looks_like_markup_is_shown_as_it_is():
    result = CliRunner().invoke(
        app,
        ["compare", "one", "two", "--prompt", "[red]x[/red]", "--max-new-tokens", "1"],
        prog_name="finetooth",
    )
    assert "[red]x[/red]" in result.stdout


def test_neither_prompt_nor_answer_nor_name_drives_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def reply(self: Speaker, new: list[list[Message]], *, max_new_tokens: int) -> list[Reply]:
        return [Reply("\x1b[31mred\x07", stopped=True) for _ in new]

    monkeypatch.setattr(Speaker, "reply", reply)
    (tmp_path / "two").rename(tmp_path / "\x1b[2J[red]")
    arguments = ["compare", "one", "\x1b[2J[red]", "--prompt", "\x1b[3J"]
    shown = CliRunner().invoke(app, arguments, prog_name="finetooth").stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert shown.count("\\x1b[31mred\\x07") == 2
    assert "\\x1b[2J[red]" in shown
    assert "\\x1b[3J" in shown
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"], prog_name="finetooth").stdout)
    assert told["answers"][0]["first"]["text"] == "\x1b[31mred\x07"
