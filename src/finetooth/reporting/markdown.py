"""Text from outside within Markdown: as code, which Markdown and HTML leave as it is, or as YAML."""

import json
import re

from finetooth.base.terminal import make_visible


class Safe(str):
    """Markdown in which everything from outside has been escaped."""


def in_code(value: object) -> Safe:
    """A span of code that shows a text, on one line, whatever it holds.

    >>> in_code("a.jsonl"), in_code("`a`")
    ('`a.jsonl`', '`` `a` ``')
    """
    text = make_visible(str(value)) or " "
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or text.isspace() else ""
    return Safe(f"{fence}{pad}{text}{pad}{fence}")


def in_block(text: str, language: str = "") -> Safe:
    """A block of code that shows a text of several lines, whatever it holds."""
    shown = make_visible(text, keep="\n\t")
    fence = "`" * max(3, _longest_run(shown) + 1)
    return Safe(f"{fence}{language}\n{shown}\n{fence}")


def as_yaml(value: object) -> Safe:
    """A value on one line of YAML, which reads JSON; no character drives a terminal or ends the line.

    >>> as_yaml("a: b"), as_yaml([1e-05, None])
    ('"a: b"', '[1e-05, null]')
    """
    return Safe(re.sub(r"[^\x20-\x7e]", _numbered, json.dumps(value, ensure_ascii=False)))


def _numbered(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _longest_run(text: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
