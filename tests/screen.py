"""A terminal that knows as much as a live display uses, so that tests see what a person sees."""

import re

_PIECES = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen:
    """What stands on a terminal after some output; `hidden` says whether its cursor is."""

    def __init__(self, output: str, *, width: int = 80):
        self.lines = [""]
        self.hidden = False
        self._row = self._column = 0
        place = 0
        for piece in _PIECES.finditer(output):
            assert piece.start() == place, f"unknown output: {output[place : place + 20]!r}"
            place = piece.end()
            self._take(piece)
        assert place == len(output)
        assert all(len(line) <= width for line in self.lines), "a line is wider than the screen"

    def _take(self, piece: re.Match[str]) -> None:
        private, number, command = piece.groups()
        if piece[0] == "\r":
            self._column = 0
        elif piece[0] == "\n":
            self._row, self._column = self._row + 1, 0
            self.lines += [""] * (self._row + 1 - len(self.lines))
        elif command is None:
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + piece[0] + line[self._column + len(piece[0]) :]
            self._column += len(piece[0])
        elif command == "A":
            self._row -= int(number)
            assert self._row >= 0, "above the screen"
        elif command == "K":
            assert number == "2"
            self.lines[self._row] = ""
        elif private:
            assert number == "25"
            self.hidden = command == "l"
        else:
            assert command == "m", f"unknown command: {piece[0]!r}"
