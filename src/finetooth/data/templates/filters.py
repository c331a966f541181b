"""The filters, tests and methods of chat templates, whose results stay traced and of bounded size."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context

from finetooth.data.templates.limits import (
    CHARACTERS_PER_PLACE,
    LimitError,
    Stream,
    admitted,
    current,
    gathered,
    kind_of,
    require_format,
    require_text,
    require_width,
    weigh,
    weighed,
)
from finetooth.data.templates.provenance import Traced, retold

_MACHINERY = (jinja2.Environment, nodes.EvalContext, Context)

# Filters that look at the uppermost level of a value only.
_SHALLOW = frozenset(
    (
        *(
            "attr",
            "batch",
            "count",
            "d",
            "default",
            "first",
            "items",
            "last",
            "length",
            "list",
            "map",
            "reject",
        ),
        *("rejectattr", "reverse", "select", "selectattr", "slice"),
    )
)
# Filters that go through all entries at once.
_GATHERING = frozenset(("dictsort", "groupby", "join", "list", "max", "min", "sort", "sum", "unique"))
# Filters whose time grows faster than their text.
_SLOW = frozenset(("pprint", "striptags", "urlize", "wordwrap", "xmlattr"))
# Filters that are no function of their arguments, and those that need no bounds.
_IMPURE = frozenset(("random",))
_PLAIN = frozenset(("count", "length"))
# Results that no origin can change, and arguments that are no origins.
_FINISHED = {bool, int, Traced}
_PLAIN_TYPES = {str, int, type(None)}
# Tests that look at a value as a whole.
_DEEP_TESTS = frozenset(
    (
        *("in", "lower", "upper", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge"),
        *("<", "lt", "lessthan", "<=", "le"),
    )
)


def bounded_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """jinja2's filters for chat templates: `tojson` as in transformers, none that is left to chance."""
    chosen = {**filters, "tojson": _to_json}
    return {
        name: function if name in _PLAIN else _bounded(name, function)
        for name, function in chosen.items()
        if name not in _IMPURE
    }


def bounded_tests(tests: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """jinja2's tests, of which those that compare count what they look through."""
    return {name: _counted(test) if name in _DEEP_TESTS else test for name, test in tests.items()}


def call_method(
    method: Callable[..., Any], owner: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Calls a method of text, a list or a dict; raises LimitError where its result would be too large."""
    name = method.__name__
    if isinstance(owner, str):
        num_runs = len(owner.runs) if type(owner) is Traced else 1
        current.get().spend(num_runs + (len(owner) >> 6))
        if name in _METHODS:
            arguments = tuple(map(gathered, arguments))
            _METHODS[name](owner, *arguments, **options)
    elif name in ("count", "get", "index"):
        weigh((arguments, owner if isinstance(owner, list) else None))
    result = admitted(method(*arguments, **options))
    if kind_of(result) in _FINISHED or not isinstance(owner, str):
        return result
    is_plain = _PLAIN_TYPES.issuperset(map(kind_of, (*arguments, *options.values())))
    return (
        result if is_plain and kind_of(owner) is str else retold(result, *weighed(owner, arguments, options))
    )


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def bounded(*given: Any, **options: Any) -> Any:
        machinery = [value for value in given if isinstance(value, _MACHINERY)]
        values = [value for value in given if not isinstance(value, _MACHINERY)]
        current.get().spend()
        if name in _GATHERING and values:
            values[0] = gathered(values[0])
            if isinstance(values[0], str):
                current.get().make(CHARACTERS_PER_PLACE * len(values[0]))
        if name not in _SHALLOW:
            _require_deep(name, values, options)
        if name in _ARGUMENTS:
            _ARGUMENTS[name](*values, **options)
        result: Any = function(*machinery, *values, **options)
        if isinstance(result, Iterator):
            return Stream(cast(Iterator[Any], result), values)
        admitted(result)
        is_made = issubclass(kind_of(result), str) or name not in _SHALLOW
        return retold(result, *weighed(values, options)) if is_made else result

    return bounded


def _counted(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def counted(*arguments: Any) -> Any:
        weigh([value for value in arguments if not isinstance(value, Stream)])
        return test(*arguments)

    return counted


def _require_deep(name: str, values: list[Any], options: dict[str, Any]) -> None:
    """Raises LimitError where a filter that goes through all of its arguments would do too much."""
    size = require_text((values, options))
    if name in _GATHERING:
        current.get().spend(size.num_values * 16 + (size.num_characters >> 4))
    elif name in _SLOW:
        current.get().spend(size.num_characters * size.num_characters >> 10)


def _require_widths(_: Any, *widths: Any, **named: Any) -> None:
    require_width(*widths, *named.values())


def _require_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    require_width(width)
    indentation = width if isinstance(width, int) else len(width)
    current.get().require(str(text).count("\n") * indentation)


def _require_json(value: Any, *options: Any, **named: Any) -> None:
    for option in (*options, *named.values()):
        require_width(option)
        if isinstance(option, int | str) and not isinstance(option, bool):
            size, indentation = weigh(value), option if isinstance(option, int) else len(option)
            current.get().require(size.num_values * size.depth * indentation)


def _require_joined(parts: Any, separator: Any = "", *_: Any, **__: Any) -> None:
    _require_join(str(separator), parts)


def _require_replaced(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    _require_replace(str(text), str(old), str(new))


def _require_percent(text: Any, *values: Any, **named: Any) -> None:
    require_format(str(text), named or values)


def _require_numbers(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise LimitError("it sums what are not numbers")


def _require_batch(parts: Any, width: Any, *_: Any, **__: Any) -> None:
    require_width(width)


_ARGUMENTS: dict[str, Callable[..., None]] = {
    "batch": _require_batch,
    "center": _require_widths,
    "format": _require_percent,
    "indent": _require_indent,
    "join": _require_joined,
    "replace": _require_replaced,
    "round": _require_widths,
    "sum": _require_numbers,
    "tojson": _require_json,
    "wordwrap": _require_widths,
}


def _require_replace(text: str, old: str, new: str, *_: Any) -> None:
    current.get().require(len(text) + text.count(old) * len(new))


def _require_join(separator: str, parts: Any) -> None:
    num_parts = len(parts) if hasattr(parts, "__len__") else 0
    size = weigh(parts)
    current.get().require(size.num_characters + num_parts * len(separator))


def _require_tabs(text: str, tabsize: int = 8) -> None:
    require_width(tabsize)
    current.get().require(len(text) + text.count("\t") * abs(tabsize))


def _require_pieces(text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    num_pieces = text.count(sep) if sep else len(text) // 2
    num_pieces = min(num_pieces, maxsplit) if maxsplit >= 0 else num_pieces
    current.get().require(CHARACTERS_PER_PLACE * num_pieces)


def _require_lines(text: str, keepends: bool = False) -> None:
    current.get().require(CHARACTERS_PER_PLACE * len(text))


_METHODS: dict[str, Callable[..., None]] = {
    "center": _require_widths,
    "expandtabs": _require_tabs,
    "join": _require_join,
    "ljust": _require_widths,
    "replace": _require_replace,
    "rjust": _require_widths,
    "rsplit": _require_pieces,
    "split": _require_pieces,
    "splitlines": _require_lines,
    "zfill": _require_widths,
}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
