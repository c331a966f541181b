"""Text that knows, character by character, whether a template or a message wrote it.

`Traced` behaves as the `str` it is; beside the characters it holds runs `(length, source, start)`:

    source  (message index, field), or None: the template wrote these characters
    start   where in that field the run begins; UNPLACED after an operation that loses the place

Cutting, joining and stripping keep the exact place; every other operation keeps the source only. What cannot
be told counts as message text, never as the template's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex, cast

from jinja2 import Undefined

Source = tuple[int, str]
Run = tuple[int, Source | None, int]

UNPLACED = -1
UNKNOWN: Source = (-1, "unknown")


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
        return (self._cut(index, index + 1) for index in range(len(self)))

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
        return cast(Traced, self.lstrip(chars)).rstrip(chars)

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
        pieces: list[str] = []
        cursor = 0
        for part in parts:
            begin = self.index(part, cursor)
            pieces.append(self._cut(begin, begin + len(part)))
            cursor = begin + len(part) + gap
        return pieces

    def _cut(self, begin: int, end: int) -> str:
        if begin == 0 and end == len(self):
            return self
        runs: list[Run] = []
        position = 0
        for length, source, start in self.runs:
            first, last = max(begin, position), min(end, position + length)
            if first < last:
                runs.append((last - first, source, start if start == UNPLACED else start + first - position))
            position += length
        return Traced(super().__getitem__(slice(begin, end)), runs)


def joined(pieces: Iterable[str]) -> Traced:
    """Joins pieces; those that are plain strings count as written by the template."""
    pieces = tuple(pieces)
    runs: list[Run] = []
    for piece in pieces:
        if type(piece) is Traced:
            runs.extend(piece.runs)
        else:
            runs.append((len(piece), None, 0))
    return Traced("".join(pieces), runs)


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
