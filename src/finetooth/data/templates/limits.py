"""Bounds what one rendering of a template may do, so that one which loops or grows for ever is stopped.

Three things are counted, without signals and without processes, so in every thread alike:

    steps       what the compiled template evaluates: each block counts its expressions when it is entered
    characters  all text made so far, whether or not it still exists; a place in a list counts as sixteen
    seconds     of this thread's processor; a bound for what counting does not foresee

What could be large is refused before it is made. The bounds grow with what the rendering was given, so that
long conversations render. How fast a machine is matters for the seconds alone, which only hostile ones need.
"""

import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import jinja2
from jinja2 import Undefined
from jinja2.runtime import LoopContext, Macro, TemplateReference
from jinja2.utils import Namespace

MAX_STEPS = 3_000_000
MAX_CHARACTERS = 16_000_000
MAX_SECONDS = 3.0
CHARACTERS_PER_PLACE = 16  # a place in a list, an object of its own
MAX_WIDTH = 10_000  # of what a format, an indentation or a rounding names
MAX_BITS = 16_384  # of a whole number

_STEPS_PER_GIVEN = 100
_CHARACTERS_PER_GIVEN = 256
_CHECK_EVERY = 20_000
_MAX_DEPTH = 1_000
_NUM_NESTED_STREAMS = 50
_WIDEST_NUMBER = 400  # the characters of the longest float
_EXPANSION = 12  # at most so many characters become of one, as "\\ud83d\\ude00" in JSON

_FORMAT = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?[hlL]?[a-zA-Z%]")
_NUMBERS = re.compile(r"\d+")
_WITH_TEXT = (int, float, type(None), Undefined, Macro, LoopContext, TemplateReference, range)

kind_of: Callable[[Any], Any] = type


class LimitError(jinja2.TemplateRuntimeError):
    """A template wants more than a rendering may have."""


class Budget:
    """What one rendering has used, and how much it may."""

    __slots__ = ("_check_at", "_deadline", "_given", "_variables", "num_characters", "num_steps")

    def __init__(self, variables: Mapping[str, Any]):
        self.num_steps = 0
        self.num_characters = 0
        self._variables = variables
        self._given: int | None = None
        self._check_at = _CHECK_EVERY
        self._deadline: float | None = None  # from the first check on; asking for the time costs time

    def spend(self, steps: int = 1) -> None:
        """Counts steps; raises LimitError."""
        self.num_steps += steps
        if self.num_steps >= self._check_at:
            self._check()

    def make(self, characters: int) -> None:
        """Counts characters that are about to be made, or were made; raises LimitError."""
        self.num_characters += characters
        self.num_steps += 1 + (characters >> 8)
        if self.num_steps >= self._check_at or self.num_characters > MAX_CHARACTERS:
            self._check()

    def require(self, characters: int) -> None:
        """Raises LimitError where so many more characters could not be made."""
        if self.num_characters + characters > MAX_CHARACTERS:
            allowed = MAX_CHARACTERS + _CHARACTERS_PER_GIVEN * self._num_given()
            if self.num_characters + characters > allowed:
                raise LimitError(f"it makes more than {allowed:,} characters of text in one rendering")

    def _check(self) -> None:
        self.require(0)
        if self.num_steps > MAX_STEPS:
            allowed = MAX_STEPS + _STEPS_PER_GIVEN * self._num_given()
            if self.num_steps > allowed:
                raise LimitError(f"it takes more than {allowed:,} steps in one rendering")
        now = time.thread_time()
        self._deadline = self._deadline or now + MAX_SECONDS
        if now > self._deadline:
            raise LimitError(f"it computes for more than {MAX_SECONDS:g} seconds in one rendering")
        self._check_at = self.num_steps + _CHECK_EVERY

    def _num_given(self) -> int:
        """How many characters the variables hold; a value counts as one more."""
        if self._given is None:
            pending, self._given = [cast(Any, self._variables)], 0
            while pending:
                value = pending.pop()
                self._given += 1 + (len(value) if isinstance(value, str) else 0)
                if isinstance(value, Mapping):
                    pending.extend(cast(Mapping[Any, Any], value).values())
                elif isinstance(value, list | tuple):
                    pending.extend(cast(Sequence[Any], value))
        return self._given


current: ContextVar[Budget] = ContextVar("budget")
"""The budget of the rendering that runs; none while a template is compiled, so nothing is computed then."""


class Size(NamedTuple):
    """How large the text of a value would be: its parts, their characters, and how deep they lie."""

    num_values: int
    num_characters: int
    depth: int


def weigh(value: Any) -> Size:
    """Looks through a value before something else does, which costs steps.

    What is held several times counts several times, as it would in the value's text. Raises LimitError where
    that is too much, and TemplateRuntimeError where a value in it has no text that is the same in every run.
    """
    budget = current.get()
    num_values = num_characters = depth = 0
    levels: list[Iterator[Any]] = [iter((value,))]
    while levels:
        depth = max(depth, len(levels))
        if depth > _MAX_DEPTH:
            raise LimitError(f"it nests values more than {_MAX_DEPTH:,} deep")
        for entry in levels[-1]:
            num_values += 1
            if isinstance(entry, str):
                num_characters += len(entry)
                budget.spend(1 + (len(entry) >> 8))
                continue
            if not isinstance(entry, _WITH_TEXT):
                budget.spend(4)
                levels.append(_parts_of(entry))
                break
            budget.spend(1)
        else:
            levels.pop()
    return Size(num_values, num_characters, depth)


def weighed(*values: Any) -> tuple[Any, ...]:
    """The values, after they were looked through."""
    weigh(values)
    return values


def require_text(value: Any) -> Size:
    """Raises LimitError where the text of a value, as a filter or format may write it, would be too long."""
    size = weigh(value)
    current.get().require(_EXPANSION * size.num_characters + CHARACTERS_PER_PLACE * size.num_values)
    return size


def admitted(result: Any) -> Any:
    """The result of an operation, after its size was counted; raises LimitError."""
    kind = kind_of(result)
    if kind is bool:
        return result
    if issubclass(kind, str):
        current.get().make(2 * CHARACTERS_PER_PLACE + len(result))
    elif issubclass(kind, list | tuple | dict | set | frozenset):
        current.get().make(CHARACTERS_PER_PLACE * len(result))
    elif issubclass(kind, int) and result.bit_length() > MAX_BITS:
        raise LimitError(f"it computes a number of more than {MAX_BITS:,} bits")
    return result


def require_width(*widths: Any) -> None:
    """Raises LimitError where a width, a precision or an indentation is out of all proportion."""
    for width in widths:
        if isinstance(width, int) and abs(width) > MAX_WIDTH:
            raise LimitError(f"it names a width of {width:,}; at most {MAX_WIDTH:,} is rendered")


def require_format(text: str, values: Any) -> None:
    """Raises LimitError where `text % values` would be too long."""
    num_fields = place = 0
    widths: list[int] = []
    while (place := text.find("%", place)) >= 0:
        field = _FORMAT.match(text, place)
        if field is None or "*" in field.groups():
            raise LimitError(f"it formats with {text[place : place + 20]!r}, whose width cannot be foreseen")
        widths += [int(width[:9]) for width in field.groups() if width]
        place, num_fields = field.end(), num_fields + 1
    require_width(*widths)
    size = require_text(values)
    widest = _WIDEST_NUMBER + max(widths, default=0) + _EXPANSION * size.num_characters
    current.get().require(num_fields * (widest + CHARACTERS_PER_PLACE * size.num_values))


def require_field(value: Any, specification: str) -> None:
    """Raises LimitError where `format(value, specification)` would be too long."""
    require_width(*(int(number[:9]) for number in _NUMBERS.findall(specification)))
    require_text(value)


def require_sum(left: Any, right: Any) -> None:
    """Raises LimitError where `left + right` would be too long; text is counted when it is made."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        num_places = len(cast(Sequence[Any], left)) + len(cast(Sequence[Any], right))
        current.get().require(CHARACTERS_PER_PLACE * num_places)


def require_repeated(left: Any, right: Any) -> None:
    """Raises LimitError where `left * right` would be too long."""
    for parts, times in ((left, right), (right, left)):
        if isinstance(parts, str | list | tuple) and isinstance(times, int):
            weight = 1 if isinstance(parts, str) else CHARACTERS_PER_PLACE
            current.get().require(weight * len(cast(Sequence[Any], parts)) * max(0, times))


def require_power(base: Any, exponent: Any) -> None:
    """Raises LimitError where `base ** exponent` would be a number of too many digits."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_BITS:
        raise LimitError(f"it computes a number of more than {MAX_BITS:,} bits")


class Stream:
    """An iterator of which each entry counts as a step; templates can do nothing with it but iterate."""

    __slots__ = ("_depth", "_entries")

    def __init__(self, entries: Iterator[Any], sources: Iterable[Any]):
        """Raises LimitError where streams of streams lie too deep, which Python could not clear away."""
        current.get().make(4 * CHARACTERS_PER_PLACE)
        self._entries = entries
        self._depth = 1 + max((value._depth for value in sources if isinstance(value, Stream)), default=0)
        if self._depth > _NUM_NESTED_STREAMS:
            raise LimitError(f"it lays more than {_NUM_NESTED_STREAMS} filters over one another")

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Any:
        current.get().spend()
        return next(self._entries)


def gathered(entries: Any) -> Any:
    """The entries of a stream or a range as a list, counted one by one; anything else as it is."""
    if not isinstance(entries, Stream | range):
        return entries
    listed: list[Any] = []
    for entry in entries:
        current.get().make(CHARACTERS_PER_PLACE)
        listed.append(entry)
    return listed


def _parts_of(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        return (part for entry in cast(Mapping[Any, Any], value).items() for part in entry)
    if isinstance(value, Namespace):
        return iter([object.__getattribute__(value, "_Namespace__attrs")])
    if isinstance(value, list | tuple | KeysView | ItemsView | ValuesView):
        return iter(cast(Iterable[Any], value))
    fact = f"it writes or compares a {type(value).__name__}, whose text is another in every run"
    raise jinja2.TemplateRuntimeError(fact)
