"""Writes the JSON Schema of run.yaml, so that editors complete and check it: `make schema`."""

import ast
import dataclasses
import inspect
import json
import textwrap
from typing import Any

from finetooth.config.checks import json_schema_of
from finetooth.config.schema import SFTConfig
from finetooth.config.settings import Setting, sections_of, settings_of


def json_schema() -> dict[str, Any]:
    """The JSON Schema of run.yaml; the docstrings of the settings are its descriptions."""
    schema = _object_schema(SFTConfig)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "finetooth run.yaml",
        **schema,
    }


def _object_schema(config_class: type) -> dict[str, Any]:
    settings, sections = settings_of(config_class), sections_of(config_class)
    descriptions = _descriptions_of(config_class)
    names = [field.name for field in dataclasses.fields(config_class) if field.compare]
    properties = {
        name: {
            "description": descriptions[name],
            **(_object_schema(sections[name]) if name in sections else _value_schema(settings[name])),
        }
        for name in names
    }
    required = [name for name in names if name in settings and settings[name].is_required]
    required += [name for name in sections if _object_needs(sections[name])]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _object_needs(section: type) -> bool:
    return any(setting.is_required for setting in settings_of(section).values())


def _value_schema(setting: Setting) -> dict[str, Any]:
    schema = json_schema_of(setting.kind)
    return schema if setting.is_required else {**schema, "default": setting.default}


def _descriptions_of(config_class: type) -> dict[str, str]:
    """The text literal below each field of a class, by the field's name."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(definition, ast.ClassDef)
    descriptions: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(below, ast.Expr), f"{field.target.id} has no docstring"
            assert isinstance(below.value, ast.Constant), f"{field.target.id} has no docstring"
            descriptions[field.target.id] = " ".join(str(below.value.value).split())
    return descriptions


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
