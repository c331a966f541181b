"""Tools and calls of tools, brought into the one shape that chat templates read.

    {"type": "function", "function": {"name": "add", "description": …, "parameters": {…}}}         a tool
    {"type": "function", "id": …, "function": {"name": "add", "arguments": {"a": 2}}}              a call

Calls in the bare form {"name": …, …} are put under `function`, and arguments that are JSON text become the
object that they say. Everything else in them is kept.
"""

from typing import Any, cast

from finetooth.data.formats.entry import Entry, UnfitError, is_empty, shortened
from finetooth.data.sources.reading import NotARecordError, kind_of, parse_json


def read_tools(root: Entry, name: str, *, wrap: bool) -> tuple[dict[str, Any], ...]:
    """The tools of a record: a list of objects, or the JSON text of one.

    wrap: whether bare tools are put under `function`, as they are where a model is served with tools
    """
    values = root.optional_list(name)
    if not values:
        return ()
    tools = [_object(value, f"{root.inner(name)}[{index}]") for index, value in enumerate(values)]
    return tuple(map(_wrapped, tools)) if wrap else tuple(tools)


def read_calls(value: object, place: str) -> tuple[dict[str, Any], ...]:
    """One call or a list of calls, as objects or as JSON text."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except NotARecordError as error:
            raise UnfitError(f"{place} is no tool call in JSON ({error})", _CALL_FORM) from None
    if not isinstance(value, list):
        return (_call(value, place),)
    calls = cast(list[object], value)
    return tuple(_call(call, f"{place}[{index}]") for index, call in enumerate(calls))


def _wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    if "name" in tool and "function" not in tool and tool.get("type") in (None, "function"):
        function = {key: entry for key, entry in tool.items() if key != "type"}
        return {"type": "function", "function": function}
    return tool


def _call(value: object, place: str) -> dict[str, Any]:
    outer = _object(value, place)
    if outer.get("type") not in (None, "function"):
        raise UnfitError(f"{place} is a call of type {shortened(outer['type'])}", _CALL_FORM)
    if outer.get("function") is None:
        function = {key: entry for key, entry in outer.items() if key not in ("type", "id", "function")}
        outer = {"id": outer["id"]} if "id" in outer else {}
    else:
        function = _object(outer["function"], f"{place}.function")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UnfitError(f"{place} names no tool", _CALL_FORM)
    arguments = _arguments(function.get("arguments"), f"{place} ({shortened(name)})")
    return {**outer, "type": "function", "function": {**function, "arguments": arguments}}


def _arguments(value: object, place: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except NotARecordError as error:
            raise UnfitError(f"{place}: its arguments are not JSON ({error})", _ARGUMENTS_FORM) from None
    if not isinstance(value, dict):
        fact = "no arguments" if value is None else f"arguments that are {kind_of(value)}"
        raise UnfitError(f"{place} has {fact}", _ARGUMENTS_FORM)
    return cast(dict[str, Any], value)


def _object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or is_empty(cast(object, value)):
        fact = "empty" if value == {} else f"{kind_of(cast(object, value))} instead of an object"
        raise UnfitError(f"{place} is {fact}", "write it as an object")
    return cast(dict[str, Any], value)


_CALL_FORM = 'write {"name": …, "arguments": {…}}'
_ARGUMENTS_FORM = "write them as an object, {} for none"
