"""The sources of a config as they are now: the files of each, their hashes, and its format."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth.base.errors import DataError, problem
from finetooth.base.files import sha256_of
from finetooth.config.schema import DataConfig
from finetooth.config.sources import SourceConfig, sources_of
from finetooth.data.formats.reading import Format, settle_format
from finetooth.data.ledger import Split
from finetooth.data.records import Record
from finetooth.data.source_files import files_of
from finetooth.data.sources import BadLine, read_records


@dataclass(frozen=True, slots=True)
class Source:
    """One source with its files, as they were when they were hashed.

    place:  the setting that names it: data.train, or data.train[1]
    files:  in the order they are read
    hashes: SHA-256 of each file
    states: size and time of the last change of each file
    """

    settings: SourceConfig
    place: str
    split: Split
    files: tuple[str, ...]
    format: Format
    hashes: tuple[str, ...]
    states: tuple[tuple[int, int], ...]

    @property
    def path(self) -> str:
        """As the settings name it."""
        return self.settings.path

    def entries(self) -> Iterator[Record | BadLine]:
        """Its records, file after file, no more than the settings allow."""
        return itertools.islice(entries_of(self.files), self.settings.max_records)

    def has_more(self) -> bool:
        """Whether it holds more records than the settings allow."""
        limit = self.settings.max_records
        if limit is None:
            return False
        return any(True for _ in itertools.islice(entries_of(self.files), limit, None))

    def require_unchanged(self) -> None:
        """Raises DataError where a file is no longer what was hashed."""
        changed = [
            file for file, state in zip(self.files, self.states, strict=True) if _state_of(file) != state
        ]
        if changed:
            fact, remedy = "the file changed while it was read", "run again when it is complete"
            raise DataError(problem(file, fact, remedy) for file in changed)

    def describe(self) -> dict[str, Any]:
        """All of it that what is prepared depends on."""
        return {
            "path": self.path,
            "split": self.split,
            "format": self.format,
            "fields": self.settings.fields,
            "max_records": self.settings.max_records,
            "files": dict(zip(self.files, self.hashes, strict=True)),
        }


def examine_sources(data: DataConfig) -> list[Source]:
    """The sources of data.train, then those of data.dev.

    Raises DataError where one names no file, cannot be read, or shows no format.
    """
    sources = _examined("data.train", data.train, "train", data, max_records=data.max_records)
    if isinstance(data.dev, str | list):
        sources += _examined("data.dev", data.dev, "dev", data, max_records=None)
    return sources


def entries_of(files: Sequence[str]) -> Iterator[Record | BadLine]:
    """The records of files, one file after the other."""
    return itertools.chain.from_iterable(map(read_records, files))


def _examined(
    setting: str,
    value: str | Sequence[Mapping[str, Any]],
    split: Split,
    data: DataConfig,
    *,
    max_records: int | None,
) -> list[Source]:
    configs = sources_of(value, format=data.format, fields=data.fields, max_records=max_records)
    is_one = isinstance(value, str)
    places = [setting if is_one else f"{setting}[{index}]" for index in range(len(configs))]
    return [_examine(config, place, split) for config, place in zip(configs, places, strict=True)]


def _examine(settings: SourceConfig, place: str, split: Split) -> Source:
    files = tuple(files_of(settings, place=place))
    format = settle_format(
        entries_of(files), settings.path, format=settings.format or "auto", fields=settings.fields
    )
    states = tuple(_state_of(file) for file in files)
    hashes = tuple(sha256_of(Path(file)) for file in files)
    return Source(settings, place, split, files, format, hashes, states)


def _state_of(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
