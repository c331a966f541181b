"""Text that knows, character by character, whether a template or a message wrote it.

`Traced` behaves as the `str` it is; beside the characters it holds runs `(length, source, start)`:

    source  (message index, field), or None: the template wrote these characters
    start   where in that field the run begins; UNPLACED after an operation that loses the place

Cutting, joining and stripping keep the exact place; every other operation keeps the source only. What cannot
be told counts as message text, never as the template's.

Where the template has `{% generation %}` blocks, two runs without characters, GENERATION_BEGIN and
GENERATION_END, stand at the edges of what was written inside one; `generation_spans` reads them.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex, cast

from jinja2 import Undefined

Source = tuple[int, str]
Run = tuple[int, Source | None, int]

UNPLACED = -1
UNKNOWN: Source = (-1, "unknown")
GENERATION_BEGIN: Run = (0, None, 1)
GENERATION_END: Run = (0, None, 2)


class Traced(str):
    """A `str` with the origin of each of its characters.

    >>> answer = Traced(" yes ", [(5, (1, "content"), 0)])
    >>> ("<a>" + answer.strip()).runs
    ((3, None, 0), (3, (1, 'content'), 1))
    """

    __slots__ = ("runs",)
    runs: tuple[Run, ...]

    def __new__(cls, text: str, runs: Iterable[Run] | None = None) -> "Traced":
        """Takes the text and its runs; without runs, the text is a message's, from an unknown place."""
        traced = super().__new__(cls, text)
        traced.runs = ((len(text), UNKNOWN, UNPLACED),) if runs is None else tuple(runs)
        return traced

    def __str__(self) -> str:
        return self

    def __add__(self, other: object, /) -> str:
        return joined((self, _text(other)))

    def __radd__(self, other: object, /) -> str:
        return joined((_text(other), self))

    def __iter__(self) -> Iterator[str]:
        return self._cuts((index, index + 1) for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice, /) -> str:
        if isinstance(key, slice):
            begin, end, step = key.indices(len(self))
            return self._cut(begin, max(begin, end)) if step == 1 else retold(super().__getitem__(key), self)
        index = key.__index__()
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError("string index out of range")
        return self._cut(index, index + 1)

    def strip(self, chars: str | None = None, /) -> str:
        begin = len(self) - len(super().lstrip(chars))
        return self._cut(begin, max(begin, len(super().rstrip(chars))))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._cut(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._cut(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self._cut(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self._cut(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(super().rsplit(sep, maxsplit), len(sep or ""))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._pieces(super().partition(sep), 0)
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._pieces(super().rpartition(sep), 0)
        return head, middle, tail

    def _pieces(self, parts: Iterable[str], gap: int) -> list[str]:
        """Places parts that stand in this order in the text, `gap` characters or whitespace apart."""
        return list(self._cuts(self._places(parts, gap)))

    def _places(self, parts: Iterable[str], gap: int) -> Iterator[tuple[int, int]]:
        cursor = 0
        for part in parts:
            begin = self.index(part, cursor)
            cursor = begin + len(part)
            yield begin, cursor
            cursor += gap

    def _cut(self, begin: int, end: int) -> str:
        return next(self._cuts(((begin, end),)))

    def _cuts(self, places: Iterable[tuple[int, int]]) -> Iterator[str]:
        """The text from `begin` to `end` for each of several places, which stand one behind the other."""
        runs = self.runs
        number = position = depth = 0  # of the first run that reaches beyond `begin`
        for begin, end in places:
            if begin == 0 and end == len(self):
                yield self
                continue
            while number < len(runs) and position + runs[number][0] <= begin:
                position += runs[number][0]
                depth = _depth_behind(runs[number], depth)
                number += 1
            yield _traced(
                str.__getitem__(self, slice(begin, end)), _part(runs, number, position, begin, end, depth)
            )


def joined(pieces: Iterable[str]) -> Traced:
    """Joins pieces; those that are plain strings count as written by the template."""
    if not isinstance(pieces, list | tuple):
        pieces = tuple(pieces)
    runs: list[Run] = []
    by_template = 0
    for piece in pieces:
        if type(piece) is not Traced:
            by_template += len(piece)
            continue
        if by_template:
            runs.append((by_template, None, 0))
            by_template = 0
        runs += piece.runs
    if by_template:
        runs.append((by_template, None, 0))
    return _traced("".join(pieces), tuple(runs))


def generation_spans(text: Traced) -> tuple[tuple[int, int], ...]:
    """Where in a text stands what the template wrote inside `{% generation %}` blocks: [(begin, end)].

    Ascending; blocks within blocks count as one. Empty where the template has no such block, or where an
    operation that loses the place (`upper`, `replace`) passed over the block's text.
    """
    position = 0
    marks: list[tuple[int, Run]] = []
    for run in text.runs:
        position += run[0]
        if is_mark(run):
            marks.append((position, run))
    return spans_between(marks)


def spans_between(marks: Iterable[tuple[int, Run]]) -> tuple[tuple[int, int], ...]:
    """The spans that marks of generation blocks enclose, of which each comes with its place in a text."""
    spans: list[tuple[int, int]] = []
    begin = depth = 0
    for position, run in marks:
        before, depth = depth, _depth_behind(run, depth)
        if depth and not before:
            begin = position
        elif before and not depth:
            spans.append((begin, position))
    return tuple(spans)


def is_mark(run: Run) -> bool:
    """Whether a run has no characters but marks the edge of a generation block."""
    return not run[0] and run[1] is None and run[2] != 0


def retold(result: Any, *origins: Any) -> Any:
    """`result`, with text in it that is not traced marked as message text if any origin holds some.

    >>> retold("YES", Traced("yes", [(3, (1, "content"), 0)])).runs
    ((3, (1, 'content'), -1),)
    >>> retold("YES", "yes")
    'YES'
    """
    if isinstance(result, list):
        return [retold(part, *origins) for part in cast(list[Any], result)]
    if isinstance(result, tuple):
        return tuple(retold(part, *origins) for part in cast(tuple[Any, ...], result))
    if not isinstance(result, str) or isinstance(result, Traced):
        return result
    source = source_within(origins)
    return result if source is None else Traced(result, ((len(result), source, UNPLACED),))


def source_within(value: Any) -> Source | None:
    """The source of the first message text in a value, or None; what cannot be looked into counts as text."""
    if isinstance(value, Traced):
        return next((source for _, source, _ in value.runs if source is not None), None)
    if value is None or isinstance(value, str | int | float | Undefined):
        return None
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value).items()
        return next((source for entry in entries if (source := source_within(entry))), None)
    if isinstance(value, list | tuple | set):
        parts = cast(Iterable[Any], value)
        return next((source for part in parts if (source := source_within(part))), None)
    return UNKNOWN


def _traced(text: str, runs: tuple[Run, ...]) -> Traced:
    traced = str.__new__(Traced, text)
    traced.runs = runs
    return traced


def _part(
    runs: tuple[Run, ...], number: int, position: int, begin: int, end: int, depth: int
) -> tuple[Run, ...]:
    """The runs from `begin` to `end`, of which the first has this number and position.

    depth: how many generation blocks are open at `begin`; they are opened and closed again in the part.
    """
    part = [GENERATION_BEGIN] * depth
    for run in itertools.islice(runs, number, None):
        length, source, start = run
        if position >= end:
            break
        first, last = max(begin, position), min(end, position + length)
        if first < last:
            moved = source is not None and start != UNPLACED
            part.append((last - first, source, start + first - position if moved else start))
        elif is_mark(run):
            part.append(run)
            depth = _depth_behind(run, depth)
        position += length
    return (*part, *[GENERATION_END] * depth)


def _depth_behind(run: Run, depth: int) -> int:
    if run == GENERATION_BEGIN:
        return depth + 1
    return max(0, depth - 1) if run == GENERATION_END else depth


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"text and {type(value).__name__} cannot be added")


def _placeless(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def method(self: Traced, *arguments: Any, **options: Any) -> Any:
        return retold(plain(self, *arguments, **options), self, arguments, options)

    method.__name__ = name
    return method


for _name in (
    *("__mod__", "__rmod__", "__mul__", "__rmul__", "__format__", "capitalize", "casefold", "center"),
    *("expandtabs", "format", "format_map", "join", "ljust", "lower", "replace", "rjust", "splitlines"),
    *("swapcase", "title", "translate", "upper", "zfill"),
):
    setattr(Traced, _name, _placeless(_name))
