"""Which files of a dataset on the hub a source names; what the local cache holds is not asked of the network.

    hf://OWNER/NAME                    the split train
    hf://OWNER/NAME/test               another split
    hf://OWNER/NAME/CONFIG             the split train of a configuration
    hf://OWNER/NAME/CONFIG/test
    hf://OWNER/NAME/data/*.jsonl       files by name

Which files are a split's stands at the head of the dataset's README.md; without that the names of folders
and files tell, and Parquet is preferred. A dataset whose file names tell no split is all train.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetooth.base.errors import ConfigError, problem
from finetooth.base.hub import cached_dataset, dataset_file_names, fetched_dataset
from finetooth.data.file_names import SPLIT_WORDS, is_data, split_of
from finetooth.data.sources import COLUMNAR_ENDINGS, COMPRESSED, TEXT_ENDINGS

_ENDINGS = (*COLUMNAR_ENDINGS, *TEXT_ENDINGS, *(ending + COMPRESSED for ending in TEXT_ENDINGS))


def hub_files(path: str, *, place: str) -> list[str]:
    """The files that `path` names, in the local cache, fetched where they are not there.

    place: the setting the path stands in. Raises ConfigError where the hub or the cache does not have them,
    and where the path leaves open which of several configurations is meant.
    """
    parts = path.removeprefix("hf://").removeprefix("datasets/").strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise ConfigError(problem(place, f"{path}: no name of a dataset", "write hf://OWNER/NAME"))
    name, rest = "/".join(parts[:2]), parts[2:]
    if rest and is_data(rest[-1]):
        return _files_by_patterns(name, ["/".join(rest)], place=place)
    if len(rest) > 2:
        raise ConfigError(problem(place, f"{path}: too many parts", "write hf://OWNER/NAME/CONFIG/SPLIT"))
    configs, default = _read_card(name, place=place)
    config, split = _config_and_split(rest, configs, default)
    if not configs:
        return _files_by_names(name, config, split, place=place)
    if config not in configs:
        fact = f"hf://{name}: " + (f"no configuration {config!r}" if config else "several configurations")
        raise ConfigError(problem(place, fact, f"write hf://{name}/ and one of {', '.join(configs)}"))
    if split not in configs[config]:
        remedy = f"it has {', '.join(configs[config])}"
        raise ConfigError(problem(place, f"hf://{name}: no split {split!r} in {config!r}", remedy))
    return _files_by_patterns(name, configs[config][split], place=place)


def _config_and_split(
    rest: Sequence[str], configs: dict[str, dict[str, list[str]]], default: str | None
) -> tuple[str | None, str]:
    if len(rest) == 2:
        return rest[0], rest[1]
    if not rest:
        return default, "train"
    is_split = rest[0] in SPLIT_WORDS or any(rest[0] in splits for splits in configs.values())
    return (default, rest[0]) if is_split and rest[0] not in configs else (rest[0], "train")


def _files_by_patterns(name: str, patterns: Sequence[str], *, place: str) -> list[str]:
    if outside := [pattern for pattern in patterns if pattern.startswith("/") or ".." in pattern.split("/")]:
        fact = f"hf://{name}: {outside[0]} is outside of the dataset"
        raise ConfigError(problem(place, fact, "name files of the dataset"))
    # The hub's library matches whole paths: **/a.jsonl would not find a.jsonl at the top.
    asked = sorted({*patterns, *(pattern.replace("**/", "") for pattern in patterns)})
    folder = cached_dataset(name, patterns=asked)
    if folder is None or not (files := _matching(folder, patterns)):
        folder = fetched_dataset(name, place=place, patterns=asked)
        files = _matching(folder, patterns)
    if not files:
        fact = f"hf://{name}: no file matches {', '.join(patterns)}"
        raise ConfigError(problem(place, fact, "look up the names of its files on its page"))
    return files


def _matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    found = {file for pattern in patterns for file in glob.glob(pattern, root_dir=folder, recursive=True)}
    return [str(folder / file) for file in sorted(found) if (folder / file).is_file()]


def _files_by_names(name: str, config: str | None, split: str, *, place: str) -> list[str]:
    for endings in ((".parquet",), _ENDINGS):
        folder = cached_dataset(name, patterns=_patterns_of(config, split, endings))
        names = _names_in(folder) if folder else []
        if folder and (chosen := _chosen(names, config, split)) and chosen[0].endswith(endings):
            is_all = any(split_of(file) for file in names) or cached_dataset(name, patterns=_any(_ENDINGS))
            if is_all:
                return _in_one_folder(name, folder, chosen, config, place=place)
    names = dataset_file_names(name, place=place)
    if not (chosen := _chosen(names, config, split)):
        data = [file for file in names if is_data(file)]
        remedy = f"it has {', '.join(data[:10])}" if data else "it has no file of records"
        within = f" in {config!r}" if config else ""
        raise ConfigError(problem(place, f"hf://{name}: no file of the split {split!r}{within}", remedy))
    folder = fetched_dataset(name, place=place, patterns=[glob.escape(file) for file in chosen])
    return _in_one_folder(name, folder, chosen, config, place=place)


def _patterns_of(config: str | None, split: str, endings: Iterable[str]) -> list[str]:
    """Patterns that cover every file which could be the split's: all of these must be in the cache."""
    words = [word for word, named in SPLIT_WORDS.items() if named == SPLIT_WORDS.get(split)] or [split]
    spellings = [spelt for word in words for spelt in (word, word.capitalize(), word.upper())]
    return [f"*{config or ''}*{spelt}*{ending}" for spelt in spellings for ending in endings]


def _any(endings: Iterable[str]) -> list[str]:
    return [f"*{ending}" for ending in endings]


def _names_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _chosen(names: Iterable[str], config: str | None, split: str) -> list[str]:
    """The files of a split among all files of a dataset, by their names."""
    data = [name for name in names if name.lower().endswith(_ENDINGS) and not name.startswith(".")]
    data = [name for name in data if config is None or config in name.split("/")[:-1]]
    if any(split_of(name) for name in data):
        data = [name for name in data if _is_of(name, split)]
    elif split != "train":
        return []
    parquet = [name for name in data if name.lower().endswith(".parquet")]
    return parquet or data


def _is_of(name: str, split: str) -> bool:
    if split in SPLIT_WORDS:
        return split_of(name) == SPLIT_WORDS[split]
    return os.path.basename(name).startswith(split)


def _in_one_folder(
    name: str, folder: Path, files: Sequence[str], config: str | None, *, place: str
) -> list[str]:
    folders = sorted({os.path.dirname(file) or "." for file in files})
    if len(folders) > 1 and config is None:
        fact = f"hf://{name}: its files lie in several folders ({', '.join(folders)})"
        raise ConfigError(problem(place, fact, f"write hf://{name}/{folders[-1].split('/')[0]}"))
    return [str(folder / file) for file in files]


def _read_card(name: str, *, place: str) -> tuple[dict[str, dict[str, list[str]]], str | None]:
    """The patterns of files by configuration and split, from the head of README.md, and the default one."""
    patterns = ["README.md"]
    folder = cached_dataset(name, patterns=patterns) or fetched_dataset(name, place=place, patterns=patterns)
    configs: dict[str, dict[str, list[str]]] = {}
    default: str | None = None
    for entry in _configs_in(folder / "README.md", name, place=place):
        if not (files := entry.get("data_files")):
            continue
        config = str(entry.get("config_name", "default"))
        configs[config] = _patterns_by_split(files)
        if entry.get("default") is True or config == "default":
            default = config
    return configs, default or (next(iter(configs)) if len(configs) == 1 else None)


def _configs_in(readme: Path, name: str, *, place: str) -> list[dict[str, Any]]:
    if not readme.is_file():
        return []
    lines = readme.read_text(encoding="utf-8", errors="replace").split("\n")
    if lines[0].strip() != "---":
        return []
    head = lines[1 : next((number for number in range(1, len(lines)) if lines[number].strip() == "---"), 1)]
    try:
        card: object = YAML(typ="safe", pure=True).load("\n".join(head))  # pyright: ignore[reportUnknownMemberType]
    except (YAMLError, ValueError, RecursionError) as error:
        fact = f"hf://{name}: the head of its README.md cannot be read"
        raise ConfigError(problem(place, fact, f"name its files: hf://{name}/FILE")) from error
    configs = cast(dict[str, Any], card).get("configs") if isinstance(card, dict) else None
    entries = cast(list[object], configs) if isinstance(configs, list) else []
    return [cast(dict[str, Any], entry) for entry in entries if isinstance(entry, dict)]


def _patterns_by_split(files: object) -> dict[str, list[str]]:
    """data_files of a configuration: a pattern, several, or those of each split."""
    if isinstance(files, dict):
        return {str(split): _texts(found) for split, found in cast(dict[object, object], files).items()}
    entries = cast(list[object], files) if isinstance(files, list) else [files]
    by_split: dict[str, list[str]] = {}
    for entry in entries:
        described = cast(dict[str, object], entry) if isinstance(entry, dict) else {"path": entry}
        found = by_split.setdefault(str(described.get("split", "train")), [])
        found += _texts(described.get("path"))
    return by_split


def _texts(value: object) -> list[str]:
    return [str(item) for item in (cast(list[object], value) if isinstance(value, list) else [value])]
