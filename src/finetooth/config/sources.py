"""Entries of data.train and data.dev: a path, or a list of sources each with its own settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field

# fmt: off
Format = Literal[
    "auto", "messages", "sharegpt", "alpaca", "dolly", "oasst", "ultrachat", "turns",
    "prompt-response", "question-answer", "gsm8k", "text", "tokens",
]
# fmt: on
Text = Annotated[str, Field(pattern=r"^[^\x00]+$")]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of records; what it leaves open, the settings of the same name below `data` decide."""

    path: Text
    """A file, a folder, a pattern such as data/*.jsonl, or hf://NAME for a dataset of the hub."""

    format: Format | None = None
    """How its records are read."""

    fields: dict[str, Text] | None = None
    """Names of the fields that hold what the format calls otherwise."""

    repeat: Count = 1
    """How often its documents are trained per epoch."""

    max_records: Count | None = None
    """Use only this many of its records, from the start."""


def sources_of(value: str | Sequence[Mapping[str, Any]], **defaults: Any) -> tuple[SourceConfig, ...]:
    """The sources that a value of data.train or data.dev names; `defaults` stand where a source says nothing.

    The value must have been checked.

    >>> sources_of([{"path": "a.jsonl", "repeat": 2}, {"path": "b.csv"}], format="auto")[0].repeat
    2
    """
    entries: Sequence[Mapping[str, Any]] = [{"path": value}] if isinstance(value, str) else value
    given = [{name: entry for name, entry in source.items() if entry is not None} for source in entries]
    return tuple(SourceConfig(**(defaults | source)) for source in given)


def describe_sources(value: object) -> str:
    """A short name of what data.train or data.dev holds, for messages.

    >>> describe_sources("a.jsonl"), describe_sources([{"path": "a.jsonl"}, {"path": "b.csv"}])
    ('a.jsonl', 'a.jsonl and 1 more')
    """
    if isinstance(value, str):
        return value
    entries = cast(Sequence[Mapping[str, Any]], value)
    first = str(entries[0]["path"])
    return first if len(entries) == 1 else f"{first} and {len(entries) - 1} more"
