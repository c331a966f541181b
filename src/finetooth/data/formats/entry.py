"""One object of a record, whose values are taken by name, so that what nobody takes can be named."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from finetooth.data.sources.reading import NotARecordError, kind_of, parse_json

_SPEAKER = re.compile(r"^(?:user|human|assistant|system|tool)\s*:", re.IGNORECASE | re.MULTILINE)
_INDEX = re.compile(r"\[\d+\]")


class UnfitError(ValueError):
    """A record that is not of the format in which it is read; says why and what to do."""

    def __init__(self, fact: str, remedy: str):
        super().__init__(fact)
        self.fact = fact
        self.remedy = remedy


class Entry:
    """An object of a record. Null and absent are alike, except where a value is required.

    place:  where it stands, "messages[1]"; empty for the record itself
    names:  what the record calls the fields that the format calls otherwise, {"prompt": "question"}
    family: where entries are gathered, this one and those of its inner objects, for `passed_over`
    """

    __slots__ = ("_family", "_names", "_skipped", "_taken", "_values", "place")

    def __init__(
        self,
        values: dict[str, Any],
        place: str = "",
        *,
        names: Mapping[str, str] | None = None,
        family: "list[Entry] | None" = None,
    ) -> None:
        self.place = place
        self._names = names or {}
        self._taken: set[str] = set()
        self._skipped: set[str] = set()
        self._values = self._renamed(values) if names else values
        self._family = family
        if family is not None:
            family.append(self)

    def child(self, value: object, place: str) -> "Entry":
        """An inner object, which must be one."""
        if not isinstance(value, dict):
            raise UnfitError(f"{place} is {kind_of(value)} instead of an object", "write it as an object")
        return Entry(cast(dict[str, Any], value), place, family=self._family)

    def take(self, name: str) -> Any:
        """The value of a field, which counts as read from now on."""
        self._taken.add(name)
        return self._values.get(name)

    def peek(self, name: str) -> Any:
        """The value of a field, which does not count as read."""
        return self._values.get(name)

    def one_of(self, *names: str) -> str:
        """Which of several names of one thing is used here; the first where none is."""
        named = [name for name in names if name in self._names]
        candidates = named or names
        filled = [name for name in candidates if not is_empty(self._values.get(name))]
        for other in filled[1:]:
            if self.take(other) != self.peek(filled[0]):
                fact = f"both {self.label(filled[0])} and {self.label(other)}"
                remedy = "keep one of them" if self.place else "name one of them in data.fields"
                raise UnfitError(fact, remedy)
        if filled:
            return filled[0]
        return next((name for name in candidates if name in self._values), candidates[0])

    def text(self, name: str) -> str:
        """A field that must hold a text."""
        value = self.take(name)
        if isinstance(value, str):
            return value
        fact = f"{self.label(name)} is {kind_of(self.required(name))} instead of a text"
        raise UnfitError(fact, "write it as a text")

    def optional_text(self, name: str) -> str | None:
        """A field that may hold a text."""
        return None if self.take(name) is None else self.text(name)

    def list_of(self, name: str) -> list[Any]:
        """A field that must hold a list, or the JSON text of one."""
        value = self.required(name)
        if isinstance(value, str):
            value = self._parsed(name, value)
        if not isinstance(value, list):
            fact = f"{self.label(name)} is {kind_of(value)} instead of a list"
            raise UnfitError(fact, "write it as a list")
        return cast(list[Any], value)

    def optional_list(self, name: str) -> list[Any]:
        """A field that may hold a list, or the JSON text of one."""
        return [] if is_empty(self.take(name)) else self.list_of(name)

    def texts(self, name: str) -> list[str]:
        """A field that must hold a list of texts."""
        values = self.list_of(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                fact = f"{self.inner(name)}[{index}] is {kind_of(value)} instead of a text"
                raise UnfitError(fact, "write it as a text")
        return values

    def entries(self, name: str) -> list["Entry"]:
        """A field that must hold a list of objects."""
        place = self.inner(name)
        return [self.child(value, f"{place}[{index}]") for index, value in enumerate(self.list_of(name))]

    def required(self, name: str) -> Any:
        """A field that must be there; it may be null."""
        if name not in self._values:
            if self.place:
                raise UnfitError(f"{self.place} has no {name!r}", "add it")
            fact = f"no field {self.label(name)}; it has {listed(map(self.inner, self._values))}"
            raise UnfitError(fact, "add it, or set data.format or data.fields")
        return self.take(name)

    def label(self, name: str) -> str:
        """How messages call a field: 'prompt', or messages[1].content."""
        return self.inner(name) if self.place else repr(self._names.get(name, name))

    def inner(self, name: str) -> str:
        """The place of a field's value: prompt, or messages[1].content."""
        actual = self._names.get(name, name)
        return f"{self.place}.{actual}" if self.place else actual

    def skip(self, name: str) -> None:
        """Notes something that is passed over on purpose."""
        self._skipped.add(name)

    def passed_over(self) -> Iterator[str]:
        """What nobody took, empty values aside; places lose their numbers."""
        yield from self._skipped
        for name, value in self._values.items():
            if name not in self._taken and not is_empty(value):
                yield _INDEX.sub("[]", self.inner(name)) if self.place else self.inner(name)

    def _renamed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values by the format's names; what stands under such a name without being meant is skipped."""
        own = {actual: name for name, actual in self._names.items()}
        renamed: dict[str, Any] = {}
        for name, value in values.items():
            if name in own or name not in self._names:
                renamed[own.get(name, name)] = value
            elif not is_empty(value):
                self._skipped.add(name)
        return renamed

    def _parsed(self, name: str, text: str) -> Any:
        try:
            return parse_json(text)
        except NotARecordError as error:
            if is_transcript(text):
                fact = f"{self.label(name)} is a transcript, which does not keep turns and tool calls apart"
                raise UnfitError(fact, "write it as a list of messages") from None
            fact = f"{self.label(name)} is a text and no JSON list ({error})"
            raise UnfitError(fact, "write it as a list") from None


def is_empty(value: object) -> bool:
    """Whether a value says nothing: null, or an empty text, list or object."""
    return not value and (value is None or isinstance(value, (str, list, dict)))


def is_transcript(value: object) -> bool:
    """Whether a value is a text of lines such as "user: …", from which turns cannot be told for certain."""
    return isinstance(value, str) and len(_SPEAKER.findall(value)) > 1


def listed(names: Iterable[str]) -> str:
    """The first names of an object, for messages."""
    shown = [shortened(name) for name in itertools.islice(names, 9)]
    return ", ".join(shown if len(shown) < 9 else [*shown[:8], "…"]) or "no fields"


def shortened(value: object) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
