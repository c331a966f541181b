"""Words for values and for what is allowed, as they stand in error messages."""

import json
import math
from typing import Any

LONGEST_TEXT_SHOWN = 60


def show_value(value: object) -> str:
    """Words for a value that was found.

    >>> show_value("1e-4"), show_value(True), show_value([1, 2])
    ("the text '1e-4'", 'true', 'a list')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _show_number(value)
    if isinstance(value, str):
        return f"the text {_shorten(repr(value))}" if value else "empty text"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"a value of type {type(value).__name__}"


def as_yaml(value: object) -> str:
    """A value as it could stand in a run.yaml.

    >>> as_yaml(None), as_yaml("auto"), as_yaml(True), as_yaml(["a.jsonl"]), as_yaml(2e-05)
    ('null', 'auto', 'true', '["a.jsonl"]', '2e-05')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def describe_choices(schema: dict[str, Any]) -> str:
    """Words for what a JSON Schema allows.

    >>> describe_choices({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'a whole number at least 1 or null'
    """
    words = [word for choice in schema.get("anyOf", [schema]) for word in _describe_one(choice)]
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _describe_one(schema: dict[str, Any]) -> list[str]:
    if "enum" in schema:
        return [str(choice) for choice in schema["enum"]]
    if "const" in schema:
        return [str(schema["const"])]
    if schema["type"] == "boolean":
        return ["true", "false"]
    if schema["type"] == "object":
        return ["a mapping whose values are text" if _holds_text_only(schema) else "a mapping"]
    if "examples" in schema:
        return [f"text such as {schema['examples'][0]}"]
    if schema["type"] == "array":
        return ["a list that is not empty" if schema.get("minItems") else "a list"]
    names = {"integer": "a whole number", "number": "a number", "string": "text", "null": "null"}
    return [names[schema["type"]] + _describe_range(schema)]


def _holds_text_only(schema: dict[str, Any]) -> bool:
    return schema["additionalProperties"].get("type") == "string"


def _describe_range(schema: dict[str, Any]) -> str:
    limits = [
        f"{words} {schema[limit]}"
        for limit, words in [
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        ]
        if limit in schema
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _show_number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    try:
        return f"the number {_shorten(repr(value))}"
    except ValueError:  # Python writes out no whole number of more than 4300 digits
        return "a number of thousands of digits"


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT_SHOWN else text[: LONGEST_TEXT_SHOWN - 1] + "…"
