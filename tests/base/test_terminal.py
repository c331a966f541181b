"""Nothing that is printed can drive a terminal, and what can be read stays as it is."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from finetooth.base.terminal import IN_PROSE, make_visible, plain_text, print_line, print_text


@given(st.text())
def test_no_control_character_is_left(text: str):
    visible = make_visible(text, keep=IN_PROSE)
    assert not [c for c in visible if unicodedata.category(c) in ("Cc", "Cs", "Cf") and c not in IN_PROSE]
    assert make_visible(text).isprintable()


@given(st.text(alphabet="aé中 [/]\\\n\t\u3000\u200d👩"))
def test_what_can_be_read_stays_as_it_is(text: str):
    assert make_visible(text, keep=IN_PROSE) == text


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb\x07\x00", "a\\rb\\x07\\x00"),
        ("\u202etxt", "\\u202etxt"),
        ("\ud800", "\\ud800"),
        ("\n", "\\n"),
    ],
)
def test_control_characters_become_escapes(text: str, visible: str):
    assert make_visible(text) == visible


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_text_is_printed_whole_and_plain(is_terminal: bool):
    written = io.StringIO()
    console = Console(file=written, width=20, force_terminal=is_terminal, color_system="standard")
    print_text(console, "[red]1 2[/red] \x1b]0;title\x07 \x1b[31m " + "word " * 20 + "\nend")
    assert written.getvalue() == ("[red]1 2[/red] \\x1b]0;title\\x07 \\x1b[31m " + "word " * 20 + "\nend\n")


def test_rich_alone_would_let_escapes_through():
    """Negative control: without this module the terminal is driven."""
    written = io.StringIO()
    Console(file=written, width=20).print("\x1b[31m", markup=False)
    assert "\x1b[31m" in written.getvalue()


@pytest.mark.parametrize(
    "character", ["\u034f", "\u115f", "\u2800", "\u3164", "\ufe00", "\U000e0100", "\U000e01ef"]
)
def test_printable_characters_that_show_nothing_become_escapes(character: str):
    assert character.isprintable()
    assert make_visible(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"


def test_an_emoji_stays_whole_in_prose_and_shows_its_parts_elsewhere():
    assert make_visible("❤\ufe0f👩\u200d💻", keep=IN_PROSE) == "❤\ufe0f👩\u200d💻"
    assert make_visible("❤\ufe0f👩\u200d💻") == "❤\\ufe0f👩\\u200d💻"


def test_a_line_stays_one_line_and_a_cell_has_no_markup():
    written = io.StringIO()
    console = Console(file=written, width=20)
    print_line(console, "[red]a\nb\x1b[0m " + "word " * 9)
    console.print(plain_text("[red]a\x1b"))
    assert written.getvalue() == "[red]a\\nb\\x1b[0m " + "word " * 9 + "\n[red]a\\x1b\n"
