"""The JSON Schema in docs/ is the one that the settings give."""

import json
from pathlib import Path

from finetooth.config.json_schema import json_schema
from finetooth.config.keys import SETTINGS

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "run.schema.json"


def test_the_committed_schema_is_current():
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == json_schema(), "run `make schema`"


def test_every_setting_has_its_type_default_and_description():
    schema = json_schema()
    assert schema["required"] == ["output_dir", "data"]
    assert schema["additionalProperties"] is False
    rate = schema["properties"]["training"]["properties"]["learning_rate"]
    assert rate == {
        "description": "Highest learning rate, reached after the warm-up.",
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 2e-5,
    }
    described = {
        f"{section}.{name}" if inside.get("properties") else section: setting["description"]
        for section, inside in schema["properties"].items()
        for name, setting in inside.get("properties", {"": inside}).items()
    }
    assert described.keys() == SETTINGS.keys()
    assert all(text.endswith(".") for text in described.values())
