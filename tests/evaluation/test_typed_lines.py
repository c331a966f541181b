"""A typed line is something said or a command; what is neither is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetooth.base.errors import ConfigError
from finetooth.evaluation.typed_lines import COMMANDS, Command, Said, help_lines, read_line


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("What is two?", Said("What is two?")),
        ("  indented", Said("  indented")),
        (" /reset", Said(" /reset")),
        ("//etc/hosts", Said("/etc/hosts")),
        ("//", Said("/")),
        ("/reset ", Command("/reset", "")),
        ("/system Be brief.", Command("/system", "Be brief.")),
        ("/system", Command("/system", "")),
        ("/save my talk.jsonl", Command("/save", "my talk.jsonl")),
        (" \t ", None),
        ("", None),
    ],
)
def test_what_a_line_means(line: str, meant: object):
    assert read_line(line) == meant


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/", "/: no such command; /help lists the commands; a text that begins with / is written with //"),
        (
            "/exit now",
            "/exit: no such command; /help lists the commands; a text that begins with / is written with //",
        ),
        ("/save", "/save: no FILE; write /save FILE"),
        ("/reset all", "/reset: takes nothing, and all stands behind it; write /reset"),
        ("caf\udce9", "line: it is not UTF-8; write it in UTF-8"),
    ],
)
def test_what_it_cannot_mean_is_told(line: str, told: str):
    with pytest.raises(ConfigError) as caught:
        read_line(line)
    assert str(caught.value) == told


@given(st.text())
def test_every_text_can_be_said(text: str):
    line = f"/{text}" if text.startswith("/") else text
    assert read_line(line) == (Said(text) if text.strip() else None)


def test_help_names_every_command_in_80_columns():
    lines = help_lines()
    assert [line.split()[0] for line in lines[: len(COMMANDS)]] == list(COMMANDS)
    assert max(map(len, lines)) <= 80
