"""Which files of a dataset on the hub a source names; what the local cache holds is not asked of the network.

    hf://OWNER/NAME                    the split train
    hf://OWNER/NAME/test               another split
    hf://OWNER/NAME/CONFIG             the split train of a configuration
    hf://OWNER/NAME/CONFIG/test
    hf://OWNER/NAME/data/*.jsonl       files by name

Which files are a split's stands at the head of the dataset's README.md; without that the names of folders
and files tell, and Parquet is preferred. A dataset whose file names tell no split is all train.
"""

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetooth.base.errors import ConfigError, problem
from finetooth.base.hub import dataset_files, dataset_listing
from finetooth.data.sources.file_names import SPLIT_WORDS, is_data, split_of
from finetooth.data.sources.reading import COLUMNAR_ENDINGS, COMPRESSED, TEXT_ENDINGS

_ENDINGS = (*COLUMNAR_ENDINGS, *TEXT_ENDINGS, *(ending + COMPRESSED for ending in TEXT_ENDINGS))


def hub_files(path: str, *, place: str) -> list[str]:
    """The files that `path` names, in the local cache, fetched where they are not there.

    place: the setting the path stands in. Raises ConfigError where the hub or the cache does not have them,
    and where the path leaves open which of several configurations is meant.
    """
    parts = path.removeprefix("hf://").removeprefix("datasets/").strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise ConfigError(problem(place, f"{path}: no name of a dataset", "write hf://OWNER/NAME"))
    dataset = "/".join(parts[:2])
    folder, names = dataset_listing(dataset, place=place)
    try:
        chosen = _chosen(parts[2:], names, folder / "README.md", f"hf://{dataset}")
    except _NotChosenError as error:
        raise ConfigError(problem(place, *error.args)) from None
    return [str(file) for file in dataset_files(dataset, chosen, commit=folder.name, place=place)]


class _NotChosenError(Exception):
    """The arguments are fact and remedy."""


def _chosen(rest: Sequence[str], names: Sequence[str], readme: Path, url: str) -> list[str]:
    """The files that what stands behind the dataset's name asks for."""
    if rest and is_data(rest[-1]):
        return _matching(names, ["/".join(rest)], url)
    if len(rest) > 2:
        raise _NotChosenError(
            "/".join([url, *rest]) + ": too many parts", "write hf://OWNER/NAME/CONFIG/SPLIT"
        )
    configs, default = _read_card(readme, url)
    config, split = _config_and_split(rest, configs, default)
    if not configs:
        return _by_names(names, config, split, url)
    if config not in configs:
        fact = f"{url}: no configuration {config!r}" if config else f"{url}: several configurations"
        raise _NotChosenError(fact, f"write {url}/ and one of {', '.join(configs)}")
    if split not in configs[config]:
        raise _NotChosenError(
            f"{url}: no split {split!r} in {config!r}", f"it has {', '.join(configs[config])}"
        )
    return _matching(names, configs[config][split], url)


def _config_and_split(
    rest: Sequence[str], configs: dict[str, dict[str, list[str]]], default: str | None
) -> tuple[str | None, str]:
    if len(rest) == 2:
        return rest[0], rest[1]
    if not rest:
        return default, "train"
    is_split = rest[0] in SPLIT_WORDS or any(rest[0] in splits for splits in configs.values())
    return (default, rest[0]) if is_split and rest[0] not in configs else (rest[0], "train")


def _matching(names: Sequence[str], patterns: Sequence[str], url: str) -> list[str]:
    asked = [pattern.split("/") for pattern in patterns]
    if not (files := [name for name in names if any(_matches(name.split("/"), parts) for parts in asked)]):
        fact = f"{url}: no file matches {', '.join(patterns)}"
        raise _NotChosenError(fact, "look up the names of its files on its page")
    return files


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, part by part; ** stands for any number of parts."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_matches(name[start:], pattern[1:]) for start in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def _by_names(names: Sequence[str], config: str | None, split: str, url: str) -> list[str]:
    data = [name for name in names if name.lower().endswith(_ENDINGS) and not name.startswith(".")]
    files = [name for name in data if config is None or config in name.split("/")[:-1]]
    if any(split_of(name) for name in files):
        files = [name for name in files if _is_of(name, split)]
    elif split != "train":
        files = []
    if not files:
        within = f" in {config!r}" if config else ""
        remedy = f"it has {', '.join(data[:10])}" if data else "it has no file of records"
        raise _NotChosenError(f"{url}: no file of the split {split!r}{within}", remedy)
    files = [name for name in files if name.lower().endswith(".parquet")] or files
    folders = sorted({os.path.dirname(name) or "." for name in files})
    if len(folders) > 1 and config is None:
        fact = f"{url}: its files lie in several folders ({', '.join(folders)})"
        raise _NotChosenError(fact, f"write {url}/{folders[-1].split('/')[0]}")
    return files


def _is_of(name: str, split: str) -> bool:
    if split in SPLIT_WORDS:
        return split_of(name) == SPLIT_WORDS[split]
    return os.path.basename(name).startswith(split)


def _read_card(readme: Path, url: str) -> tuple[dict[str, dict[str, list[str]]], str | None]:
    """The patterns of files by configuration and split, from the head of README.md, and the default one."""
    configs: dict[str, dict[str, list[str]]] = {}
    default: str | None = None
    for entry in _configs_in(readme, url):
        if not (files := entry.get("data_files")):
            continue
        config = str(entry.get("config_name", "default"))
        configs[config] = _patterns_by_split(files)
        if entry.get("default") is True or config == "default":
            default = config
    return configs, default or (next(iter(configs)) if len(configs) == 1 else None)


def _configs_in(readme: Path, url: str) -> list[dict[str, Any]]:
    if not readme.is_file():
        return []
    lines = readme.read_text(encoding="utf-8", errors="replace").split("\n")
    if lines[0].strip() != "---":
        return []
    head = lines[1 : next((number for number in range(1, len(lines)) if lines[number].strip() == "---"), 1)]
    try:
        card: object = YAML(typ="safe", pure=True).load("\n".join(head))  # pyright: ignore[reportUnknownMemberType]
    except (YAMLError, ValueError, RecursionError) as error:
        fact = f"{url}: the head of its README.md cannot be read"
        raise _NotChosenError(fact, f"name its files: {url}/FILE") from error
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
