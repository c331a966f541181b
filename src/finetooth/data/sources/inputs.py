"""The sources of a config as they are now: the files of each, their hashes, and its format."""

import functools
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
from finetooth.data.ledger import Entry, Split
from finetooth.data.records import Record
from finetooth.data.sources.files import files_of
from finetooth.data.sources.reading import BadLine, read_records
from finetooth.data.templates.template import Template
from finetooth.data.token_files.reading import is_token_file, read_token_file
from finetooth.data.token_files.shards import is_shard_folder


@dataclass(frozen=True, slots=True)
class Source:
    """One source with its files, as they were when they were hashed.

    place:  the setting that names it: data.train, or data.train[1]
    files:  in the order they are read
    hashes: SHA-256 of each file, and of those that are read with it
    states: size and time of the last change of each of these
    single_turn: whether each document of given tokens has one question
    """

    settings: SourceConfig
    place: str
    split: Split
    files: tuple[str, ...]
    format: Format
    hashes: Mapping[str, str]
    states: Mapping[str, tuple[int, int]]
    single_turn: bool

    @property
    def path(self) -> str:
        """As the settings name it."""
        return self.settings.path

    def entries(self, template: Template) -> Iterator[Entry]:
        """Its records, file after file, no more than the settings allow.

        The template tells where a document of a file of tokens begins.
        """
        return itertools.islice(self._all_entries(template), self.settings.max_records)

    def has_more(self, template: Template) -> bool:
        """Whether it holds more records than the settings allow."""
        limit = self.settings.max_records
        if limit is None:
            return False
        return any(True for _ in itertools.islice(self._all_entries(template), limit, None))

    def require_unchanged(self) -> None:
        """Raises DataError where a file is no longer what was hashed."""
        changed = [file for file, state in self.states.items() if _state_of(file) != state]
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
            "single_turn": self.single_turn,
            "files": [[file, sha256] for file, sha256 in self.hashes.items()],
        }

    def _all_entries(self, template: Template) -> Iterator[Entry]:
        if not any(map(is_token_file, self.files)):
            return entries_of(self.files)
        read = functools.partial(
            read_token_file, tokenizer=template.tokenizer, template=template, single_turn=self.single_turn
        )
        return itertools.chain.from_iterable(map(read, self.files))


def examine_sources(data: DataConfig) -> list[Source]:
    """The sources of data.train, then those of data.dev.

    Raises DataError with every one that names no file, cannot be read, or shows no format.
    """
    named = _named("data.train", data.train, "train", data, max_records=data.max_records)
    if isinstance(data.dev, str | list):
        named += _named("data.dev", data.dev, "dev", data, max_records=None)
    sources: list[Source] = []
    problems: list[str] = []
    for config, place, split in named:
        try:
            sources.append(_examine(config, place, split, single_turn=data.single_turn))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return sources


def entries_of(files: Sequence[str]) -> Iterator[Record | BadLine]:
    """The records of files, one file after the other."""
    return itertools.chain.from_iterable(map(read_records, files))


def _named(
    setting: str,
    value: str | Sequence[Mapping[str, Any]],
    split: Split,
    data: DataConfig,
    *,
    max_records: int | None,
) -> list[tuple[SourceConfig, str, Split]]:
    """The sources that a setting names, each with the place where it stands there."""
    configs = sources_of(value, format=data.format, fields=data.fields, max_records=max_records)
    is_one = isinstance(value, str)
    return [
        (config, setting if is_one else f"{setting}[{index}]", split) for index, config in enumerate(configs)
    ]


def _examine(settings: SourceConfig, place: str, split: Split, *, single_turn: bool) -> Source:
    files = tuple(files_of(settings, place=place))
    format = _format_of(settings, files)
    read_with = [Path(file) for file in itertools.chain.from_iterable(map(_read_with, files))]
    states = {str(file): _state_of(str(file)) for file in read_with}
    hashes = {str(file): sha256_of(file) for file in read_with}
    # A folder of shards is read as one, so that a gap in their numbers is seen.
    files = (settings.path,) if is_shard_folder(Path(settings.path)) else files
    return Source(settings, place, split, files, format, hashes, states, single_turn)


def _read_with(file: str) -> list[str]:
    """A file and those that are read with it, as far as they are there."""
    path = Path(file)
    beside = [path.with_name(f"{path.stem}_labels.bin"), path.with_name("meta.json")]
    return [file, *(str(other) for other in beside if path.suffix == ".bin" and other.is_file())]


def _format_of(settings: SourceConfig, files: Sequence[str]) -> Format:
    with_tokens = [file for file in files if is_token_file(file)]
    if with_tokens and len(with_tokens) < len(files):
        other = next(file for file in files if not is_token_file(file))
        fact = f"{with_tokens[0]} holds tokens, {other} records"
        raise DataError(problem(settings.path, fact, "name them as two sources"))
    if with_tokens:
        return "tokens"
    return settle_format(
        entries_of(files), settings.path, format=settings.format or "auto", fields=settings.fields
    )


def _state_of(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
