"""Writes a config as YAML that `load_config` reads back, each value with the place where it was set.

The places are comments, which `load_config` passes over; `origins_of` reads them.
"""

import json
import re

from finetooth.config.keys import SECTIONS, SETTINGS
from finetooth.config.schema import SFTConfig
from finetooth.config.settings import values_of
from finetooth.config.yaml_lines import Unreadable, read_value

_LINE_OF_SECTION = re.compile(r"(\w+):")
# A value is JSON, in which quotes hold all that could be taken for the comment, or plain text.
_LINE_OF_VALUE = re.compile(r'(  )?(\w+): (?:"(?:[^"\\]|\\.)*"|[^"#])*  # (.*)')
PLAIN_TEXT = re.compile(r"[A-Za-z0-9_./~-]+", re.ASCII)


def describe_config(config: SFTConfig) -> str:
    """Every value of a config as YAML text, with its origin as a comment.

    model:
      path: ./base  # run.yaml:2
      from_config: null  # default
    """
    values = values_of(config)
    lines = ["# Every setting of the run, each with the place where it was set."]
    for section in (*SECTIONS, ""):
        lines += [f"{section}:"] if section else []
        for key in SETTINGS:
            if key.rpartition(".")[0] == section:
                lines.append(_describe_value(key, values[key], _origin_of(config, key, values[key])))
    return "\n".join(lines) + "\n"


def origins_of(text: str) -> dict[str, str]:
    r"""By dotted key, the places in a text that `describe_config` wrote; lines of others are passed over.

    >>> origins_of('model:\n  path: "a  # b"  # run.yaml:2\noutput_dir: run  # command line\n')
    {'model.path': 'run.yaml:2', 'output_dir': 'command line'}
    """
    origins: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if match := _LINE_OF_SECTION.fullmatch(line):
            section = f"{match[1]}."
        elif match := _LINE_OF_VALUE.fullmatch(line):
            origins[f"{section if match[1] else ''}{match[2]}"] = match[3]
    return origins


def _describe_value(key: str, value: object, origin: str) -> str:
    section, _, name = key.rpartition(".")
    return f"{'  ' if section else ''}{name}: {write_value(value)}  # {_escape(origin)}"


def _origin_of(config: SFTConfig, key: str, value: object) -> str:
    return config.origins.get(key, "default" if value == SETTINGS[key].default else "code")


def write_value(value: object) -> str:
    """A value on one line, as `load_config` reads it back.

    >>> write_value("runs/first"), write_value("no: such"), write_value(None)
    ('runs/first', '"no: such"', 'null')
    """
    if isinstance(value, str) and PLAIN_TEXT.fullmatch(value) and _reads_back(value):
        return value
    return _escape(json.dumps(value, ensure_ascii=False))


def _reads_back(text: str) -> bool:
    try:
        return not text.startswith("-") and read_value(text) == text
    except Unreadable:
        return False


def _escape(text: str) -> str:
    """Writes characters that YAML does not allow as they are by their numbers, as double quotes allow."""
    return re.sub(
        r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|[\u2028\u2029]",
        lambda match: f"\\u{ord(match[0]):04x}",
        text,
    )
