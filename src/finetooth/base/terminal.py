"""Text from outside on a terminal: what could drive the terminal, or pass for other text, is made visible."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Line breaks, tabs, and what French, Chinese, Persian and emoji are written with.
IN_PROSE = "\n\t\u00a0\u3000\u200c\u200d\ufe0e\ufe0f"

# Characters that count as printable and show nothing: the grapheme joiner, fillers, the blank of Braille, and
# variation selectors, a run of which can hide a whole text.
_UNSEEN = frozenset(
    ["\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"]
    + [chr(code) for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F)) for code in range(first, last + 1)]
    + [chr(code) for code in range(0xE0100, 0xE01F0)]
)


def make_visible(text: str, *, keep: str = "") -> str:
    r"""The text with every character that shows nothing of itself, except those in `keep`, as an escape.

    Those are control characters, marks of direction and of width zero, private and unassigned characters,
    and spaces other than U+0020.

    >>> make_visible("a\x1b[31mb\n"), make_visible("a\rb\n", keep="\n")
    ('a\\x1b[31mb\\n', 'a\\rb\n')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or _is_seen(c) else c.encode("unicode_escape").decode() for c in text)


def print_text(console: "Console", text: str) -> None:
    """Prints text as it is: no markup, no colours, nothing that drives the terminal, no line broken."""
    console.print(make_visible(text, keep=IN_PROSE), markup=False, highlight=False, soft_wrap=True)


def print_line(console: "Console", text: str) -> None:
    """As print_text, but all of it on one line, so that no data can pass for a line of ours."""
    print_text(console, text.replace("\n", "\\n"))


def plain_text(text: str) -> "Text":
    """Text for a table or another part of a screen: no markup, nothing that drives the terminal."""
    from rich.text import Text

    return Text(make_visible(text, keep=IN_PROSE))


@contextmanager
def progress(doing: str, console: "Console") -> Generator[Callable[[int, int], object]]:
    """A bar on a terminal; gives what is told how much was done since the last call, and of how much."""
    from rich.progress import Progress

    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


def _is_seen(character: str) -> bool:
    return character.isprintable() and character not in _UNSEEN
