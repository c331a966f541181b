"""Reads run.yaml and `key=value` settings into a config, with every mistake told at once and in its place.

Types are strict: text is never a number, `yes` is text, a whole number will do where a number is wanted.
Relative paths in the file are relative to the working directory, not to the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from finetooth.base.errors import ConfigError, problem
from finetooth.config.checks import find_problems
from finetooth.config.keys import (
    SECTIONS,
    SETTINGS,
    Unknown,
    explain_unknown,
    find_setting,
    is_foreign,
)
from finetooth.config.schema import SFTConfig
from finetooth.config.wording import show_value
from finetooth.config.yaml_lines import BROKEN, Entry, Mistake, Unreadable, read_mapping, read_value

MOST_BYTES = 1_000_000
COMMAND_LINE = "command line"
REQUIRED_REMEDIES = {
    "data.train": "name the file with the training records",
    "output_dir": "name the folder that the run writes to",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SFTConfig:
    """Reads a run file; each override is `key=value` and wins over the file.

    A key of an override is dotted (`training.learning_rate=1e-4`) or bare where only one setting has that
    name (`learning_rate=1e-4`); its value is read as in the file. `config.origins` tells where each value
    came from.

    Raises ConfigError with every mistake, ordered by line, then what is missing, then the command line.
    """
    try:
        text = _read_text(Path(path))
    except Unreadable as error:
        raise ConfigError(_Draft(str(path)).word(error.mistake)) from None
    return read_config(text, str(path), overrides)


def read_config(text: str, name: str, overrides: Sequence[str] = ()) -> SFTConfig:
    """As `load_config`, from the text of a run file; name: what the file is called in messages."""
    draft = _Draft(name)
    try:
        entries, mistakes = read_mapping(text)
    except Unreadable as error:
        raise ConfigError(draft.word(error.mistake)) from None
    for mistake in mistakes:
        draft.add_mistake(mistake)
    draft.take_file(entries)
    draft.take_overrides(overrides)
    return draft.finish()


def config_of(values: Mapping[str, object], overrides: Sequence[str] = ()) -> SFTConfig:
    """A config from values by dotted key, as if they stood on the command line, and overrides.

    Raises ConfigError with every mistake.
    """
    draft = _Draft(COMMAND_LINE)
    draft.values, draft.places = dict(values), dict.fromkeys(values, COMMAND_LINE)
    draft.take_overrides(overrides)
    return draft.finish()


class _Draft:
    """What is known of a config so far: values and their places, and the problems met on the way."""

    def __init__(self, path: str):
        self.path = path
        self.values: dict[str, object] = {}
        self.places: dict[str, str] = {}
        self.problems: list[tuple[int, int, str]] = []

    def take_file(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.key in SECTIONS:
                self._take_section(entry)
            elif entry.key in SETTINGS and "." not in entry.key:
                self._take(entry.key, entry.value, line=entry.line)
            else:
                self._refuse_entry(entry)

    def take_overrides(self, overrides: Iterable[str]) -> None:
        seen: set[str] = set()
        for override in overrides:
            name, equals, text = override.partition("=")
            if not equals:
                self._add_override(f"{override!r} is not KEY=VALUE", "write e.g. learning_rate=1e-4")
                continue
            key = find_setting(name.strip())
            if isinstance(key, Unknown):
                self._add_override(key.fact, key.remedy)
            elif key in seen:
                self._add_override(f"{key}: given twice", "keep one of them")
            else:
                seen.add(key)
                self._take_override(key, text)

    def finish(self) -> SFTConfig:
        for key, remedy in REQUIRED_REMEDIES.items():
            if key not in self.places:
                self._add(1, 0, problem(self.path, f"{key}: missing", remedy))
        self._check_values()
        if self.problems:
            raise ConfigError(text for _, _, text in sorted(self.problems, key=lambda item: item[:2]))
        return _build_config(self.values, {key: self.places.get(key, "default") for key in SETTINGS})

    def add_mistake(self, mistake: Mistake) -> None:
        self._add(0, mistake.line, self.word(mistake))

    def word(self, mistake: Mistake) -> str:
        place = f"{self.path}:{mistake.line}" if mistake.line else self.path
        return problem(place, mistake.fact, mistake.remedy)

    def _take_section(self, section: Entry) -> None:
        if section.entries is None and section.value not in (None, BROKEN):
            fact = f"{section.key}: found {show_value(section.value)}"
            self.add_mistake(Mistake(section.line, fact, "write its keys below it, indented"))
        for entry in section.entries or []:
            key = f"{section.key}.{entry.key}"
            if key in SETTINGS:
                self._take(key, entry.value, line=entry.line)
            else:
                self.add_mistake(Mistake(entry.line, *explain_unknown(key)))

    def _take(self, key: str, value: object, *, line: int) -> None:
        self.places[key] = f"{self.path}:{line}"
        self.values[key] = value

    def _refuse_entry(self, entry: Entry) -> None:
        if entry.key in SETTINGS:
            section, _, name = entry.key.partition(".")
            unknown = Unknown(f"{entry.key}: a dotted key", f"write {name} below {section}:, indented")
        else:
            unknown = explain_unknown(entry.key)
        self.add_mistake(Mistake(entry.line, *unknown))
        for inner in entry.entries or []:
            if is_foreign(inner.key):
                self.add_mistake(Mistake(inner.line, *explain_unknown(f"{entry.key}.{inner.key}")))

    def _take_override(self, key: str, text: str) -> None:
        self.places[key] = COMMAND_LINE
        try:
            self.values[key] = read_value(text)
        except Unreadable as error:
            self.values[key] = BROKEN
            self._add_override(f"{key}: {error.mistake.fact}", error.mistake.remedy)

    def _check_values(self) -> None:
        defaults = {key: setting.default for key, setting in SETTINGS.items() if not setting.is_required}
        usable = {key: value for key, value in {**defaults, **self.values}.items() if value is not BROKEN}
        for finding in find_problems(SETTINGS, usable):
            place = next((self.places[key] for key in finding.keys if key in self.places), self.path)
            line = int(place.rpartition(":")[2]) if place.startswith(f"{self.path}:") else 0
            rank = 2 if place == COMMAND_LINE else int(line == 0)
            self._add(rank, line, problem(place, finding.fact, finding.remedy))

    def _add_override(self, fact: str, remedy: str) -> None:
        self._add(2, 0, problem(COMMAND_LINE, fact, remedy))

    def _add(self, rank: int, line: int, text: str) -> None:
        self.problems.append((rank, line, text))


def _build_config(values: dict[str, object], origins: dict[str, str]) -> SFTConfig:
    """A config from values by dotted key; what is absent takes its default."""
    sections: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    top: dict[str, object] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (sections[section] if section else top)[name] = value
    parts = {name: section(**sections[name]) for name, section in SECTIONS.items()}
    return SFTConfig(**{**parts, **top, "origins": origins})  # type: ignore[arg-type]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            fact = "larger than a megabyte, so no file of settings"
            raise Unreadable(Mistake(0, fact, "name the run.yaml; data.train names the records"))
        return content.decode("utf-8")
    except FileNotFoundError:
        raise Unreadable(Mistake(0, "no such file", "check the path")) from None
    except IsADirectoryError:
        raise Unreadable(Mistake(0, "a folder", "name the run.yaml itself")) from None
    except OSError as error:
        raise Unreadable(Mistake(0, f"cannot be read: {error.strerror}", "check its permissions")) from None
    except UnicodeDecodeError as error:
        fact = f"byte {error.start} is not UTF-8"
        raise Unreadable(Mistake(0, fact, "save the file as plain text in UTF-8")) from None
