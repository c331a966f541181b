"""Reads YAML 1.2 into plain values that know their lines.

Only text, numbers, true, false, null, lists and mappings with text keys come out. Tags, anchors, aliases,
directives and deep nesting are refused, so a text can neither run code nor grow beyond its size.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (ruamel.yaml's nodes carry no types)

import re
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

DEEPEST_NESTING = 20
TAG_PREFIX = "tag:yaml.org,2002:"
# A date, a lone "=" and "<<" are plain text in YAML 1.2; ruamel.yaml still gives them tags of their own.
TAGS_OF_TEXT = {"str", "timestamp", "value", "merge"}


BROKEN = object()


class Entry(NamedTuple):
    """One key of a mapping with its line and value, which is `BROKEN` where a mistake was found in it.

    `entries` is the value's inside where it is a mapping.
    """

    key: str
    line: int
    value: object
    entries: "list[Entry] | None"


class Mistake(NamedTuple):
    """One problem of the text; line 0 means the text as a whole."""

    line: int
    fact: str
    remedy: str


class Unreadable(Exception):  # noqa: N818 - a signal inside this package, never shown
    """The text has one mistake after which nothing of it can be read."""

    def __init__(self, mistake: Mistake):
        super().__init__(mistake)
        self.mistake = mistake


def read_mapping(text: str) -> tuple[list[Entry], list[Mistake]]:
    """Reads a text that is one mapping; returns what could be read, and every mistake.

    >>> read_mapping("data:\\n  train: a.jsonl\\n")[0][0].entries[0]
    Entry(key='train', line=2, value='a.jsonl', entries=None)

    Raises Unreadable where the text as a whole is no YAML mapping.
    """
    node = _compose(text)
    if node is None:
        raise Unreadable(Mistake(0, "empty", "write at least model.path, data.train and output_dir"))
    if not isinstance(node, MappingNode):
        kind = "a list" if isinstance(node, SequenceNode) else "a single value"
        remedy = "write sections such as `data:` with their keys below"
        raise Unreadable(Mistake(0, f"holds {kind}, no `key: value` lines", remedy))
    reader = _Reader()
    return reader.read_entries(node, depth=0), reader.mistakes


def read_value(text: str) -> object:
    """Reads the value of `key=value`: a list or mapping in brackets, text in quotes, or a plain scalar.

    >>> read_value("1e-4"), read_value("a: b"), read_value("{a: 1}")
    (0.0001, 'a: b', {'a': 1})

    Raises Unreadable.
    """
    is_plain = not text.lstrip().startswith(("{", "[", '"', "'"))
    reader = _Reader()
    value = _read_plain(text.strip()) if is_plain else reader.read_value(_compose(text), depth=0)
    if reader.mistakes:
        raise Unreadable(reader.mistakes[0])
    return value


class _Reader:
    """Turns nodes into values and collects mistakes on the way."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def read_entries(self, node: MappingNode, *, depth: int) -> list[Entry]:
        entries: list[Entry] = []
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line_of(key_node)
            key = self.read_value(key_node, depth=depth + 1)
            if not isinstance(key, str):
                self._note(key_node, "a key that is not text", "write the key as text, in quotes if need be")
            elif key in lines:
                self._note(key_node, f"{key}: stands twice, first in line {lines[key]}", "keep one of them")
            else:
                lines[key] = line
                entries.append(self._read_entry(key, line, value_node, depth=depth + 1))
        return entries

    def _read_entry(self, key: str, line: int, node: Node, *, depth: int) -> Entry:
        num_mistakes = len(self.mistakes)
        entries = None
        if isinstance(node, MappingNode) and self._is_plain(node, depth):
            entries = self.read_entries(node, depth=depth)
            value = {entry.key: entry.value for entry in entries}
        else:
            value = self.read_value(node, depth=depth)
        return Entry(key, line, BROKEN if len(self.mistakes) > num_mistakes else value, entries)

    def read_value(self, node: Any, *, depth: int) -> object:
        if not self._is_plain(node, depth):
            return None
        if isinstance(node, MappingNode):
            return {entry.key: entry.value for entry in self.read_entries(node, depth=depth)}
        if isinstance(node, SequenceNode):
            return [self.read_value(item, depth=depth + 1) for item in node.value]
        try:
            return _construct(node)
        except ValueError:
            kind = str(node.tag).removeprefix(TAG_PREFIX)
            self._note(node, f"{node.value[:40]!r} cannot be read as {kind}", "write a plain value")
            return None

    def _is_plain(self, node: Node, depth: int) -> bool:
        kind = str(node.tag).removeprefix(TAG_PREFIX)
        if node.anchor:
            self._note(node, f"the anchor &{node.anchor}", "write the value out at each place")
        elif kind not in TAGS_OF_TEXT | {"null", "bool", "int", "float", "map", "seq"}:
            self._note(node, f"the tag {kind!r}", "write a plain value without a tag")
        elif depth > DEEPEST_NESTING:
            self._note(node, f"nested deeper than {DEEPEST_NESTING} levels", "write a flatter value")
        else:
            return True
        return False

    def _note(self, node: Node, fact: str, remedy: str) -> None:
        # An aliased node is met several times, always with the line of its anchor.
        mistake = Mistake(_line_of(node), fact, remedy)
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)


def _compose(text: str) -> Node | None:
    directive = re.search(r"^%.*", text, re.MULTILINE)
    if directive:
        line = text.count("\n", 0, directive.start()) + 1
        raise Unreadable(Mistake(line, f"the directive {directive[0]!r}", "leave it out: YAML 1.2 is read"))
    try:
        return YAML(typ="safe", pure=True).compose(text)
    except RecursionError:
        fact = f"nested deeper than {DEEPEST_NESTING} levels"
        raise Unreadable(Mistake(0, fact, "write a flatter file")) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fact = f"not YAML: {', '.join(part for part in (error.context, error.problem) if part)}"
        mistake = Mistake(mark.line + 1 if mark else 0, fact, "mend this line or the one above")
        raise Unreadable(mistake) from None
    except YAMLError as error:
        fact = f"not YAML: {str(error).splitlines()[0]}"
        raise Unreadable(Mistake(0, fact, "save the file as plain text in UTF-8")) from None


def _read_plain(text: str) -> object:
    yaml = YAML(typ="safe", pure=True)
    tag = yaml.resolver.resolve(ScalarNode, text, (True, False))
    try:
        return _construct(ScalarNode(tag, text))
    except ValueError:
        raise Unreadable(Mistake(0, f"{text[:40]!r} cannot be read", "write a plain value")) from None


def _construct(node: ScalarNode) -> object:
    kind = str(node.tag).removeprefix(TAG_PREFIX)
    if kind in TAGS_OF_TEXT:
        return node.value
    try:
        return YAML(typ="safe", pure=True).constructor.construct_object(node)
    except (YAMLError, LookupError, ArithmeticError) as error:
        raise ValueError(str(error)) from error


def _line_of(node: Node) -> int:
    return node.start_mark.line + 1 if node.start_mark else 0
