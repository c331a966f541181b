"""Text from outside on a terminal: what could drive the terminal, or pass for other text, is made visible."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Line breaks, tabs, and what French, Chinese, Persian and emoji are written with.
IN_PROSE = "\n\t\u00a0\u3000\u200c\u200d"


def make_visible(text: str, *, keep: str = "") -> str:
    r"""The text with every character that does not print, except those in `keep`, as an escape.

    >>> make_visible("a\x1b[31mb\n"), make_visible("a\rb\n", keep="\n")
    ('a\\x1b[31mb\\n', 'a\\rb\n')
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def print_text(console: "Console", text: str) -> None:
    """Prints text as it is: no markup, no colours, nothing that drives the terminal, no line broken."""
    console.print(make_visible(text, keep=IN_PROSE), markup=False, highlight=False, soft_wrap=True)
