"""Where a conversation with a policy is typed and shown: a terminal with a person, or a pipe.

On a terminal, lines can be edited and called back, and remarks stand between the answers. In a pipe, standard
output has the answers and nothing else; remarks go to standard error.
"""

import contextlib
import io
import sys

from rich.console import Console

from finetooth.base.terminal import IN_PROSE, make_visible, print_line, print_text

PROMPT = "> "


class ChatScreen:
    """Reads lines, shows answers piece by piece, and remarks; nothing that it shows drives the terminal.

    is_interactive: whether a person is there, who is asked for lines and can type a mistake again
    """

    def __init__(self, console: Console, *, is_interactive: bool):
        self.console = console
        self.is_interactive = is_interactive
        self._remarks = console if is_interactive else Console(stderr=True)

    def read(self) -> str | None:
        """The next line, without its end; None where there is none any more."""
        if not self.is_interactive:
            line = sys.stdin.readline()
            return line.removesuffix("\n") if line else None
        while True:
            try:
                return input(PROMPT)
            except EOFError:
                self.console.print()
                return None
            except KeyboardInterrupt:
                self.console.print()
                self.remark("Ctrl-D ends")

    def remark(self, text: str) -> None:
        """Says something beside the conversation, on one line."""
        print_line(self._remarks, text)

    def list(self, lines: list[str]) -> None:
        """Says several lines."""
        print_text(self._remarks, "\n".join(lines))

    def show(self, piece: str) -> None:
        """Shows the next piece of an answer at once."""
        self.console.out(make_visible(piece, keep=IN_PROSE), end="", highlight=False)

    def end_answer(self, *, is_cut: bool) -> None:
        """Ends the line of an answer, and says whether it was cut off."""
        self.console.out(" …" if is_cut else "", highlight=False)


def open_screen(console: Console) -> ChatScreen:
    """The screen for this process's standard input and output.

    Bytes that are not UTF-8 come as halves of surrogate pairs, so that `read_line` can tell of them.
    """
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if is_interactive:
        with contextlib.suppress(ImportError):  # where there is none, lines are read without being edited
            import readline  # noqa: F401 - from now on, `input` edits lines and remembers them
    return ChatScreen(console, is_interactive=is_interactive)
