"""Which files a source names: one file, a folder, a pattern, a saved dataset, or a dataset of the hub.

A folder is searched to any depth, in the order of its names. What is plainly no data (hidden files, README,
LICENSE, pictures, code, …) is passed over; a file of an unknown kind is an error. A folder that
`datasets.save_to_disk` wrote gives the shards that its state.json names, in that order.
"""

import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from finetooth.base.errors import DataError, problem
from finetooth.config.sources import SourceConfig
from finetooth.data.sources import COLUMNAR_ENDINGS, COMPRESSED, TEXT_ENDINGS, ending_of

TOKEN_ENDINGS = (".bin", ".h5", ".hdf5", ".pth", ".pt")

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}

_NO_DATA_STEMS = ("readme", "license", "licence", "notice", "citation", "changelog", "copying", "_success")
_NO_DATA_NAMES = ("dataset_info.json", "dataset_infos.json", "state.json", "manifest.json")
# fmt: off
_NO_DATA_ENDINGS = (
    ".md", ".rst", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".py", ".sh", ".ipynb",
    ".yaml", ".yml", ".toml", ".lock", ".log", ".crc", ".md5", ".sha256",
)
# fmt: on
_SHARD = re.compile(r"(?P<before>.*?)-(?P<number>\d+)-of-(?P<count>\d+)(?P<after>\.[^/]*)?")


def files_of(source: SourceConfig, *, place: str) -> list[str]:
    """The files a source names, in the order they are read, written as the user wrote the source.

    place: the setting the source stands in, for messages about the hub. Raises DataError where a path or
    pattern names nothing, where a folder holds what cannot be read, several splits or a part of its shards.
    """
    path = source.path
    if os.path.isdir(path):
        files = _data_files(_files_below(path), path)
        _require_one_split(path, files)
        return _require_complete(path, files)
    if not os.path.lexists(path) and glob.has_magic(path):
        return _require_complete(path, _files_matching(path))
    if not os.path.exists(path):
        fact, remedy = "no such file", "check the path, which is relative to the working directory"
        raise DataError(problem(path, fact, remedy))
    return [path]


def split_of(path: str) -> str | None:
    """The split that a path within a folder names, by whole words; None for none or several.

    >>> split_of("data/train-00000-of-00002.parquet"), split_of("test/a.jsonl"), split_of("contest.jsonl")
    ('train', 'test', None)
    """
    words = re.findall(r"[a-z]+", path.lower())
    named = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return named.pop() if len(named) == 1 else None


def is_data(path: str) -> bool:
    """Whether a file's ending says that it holds records or tokens."""
    ending = ending_of(path)
    return ending.removesuffix(COMPRESSED) in TEXT_ENDINGS or ending in (*COLUMNAR_ENDINGS, *TOKEN_ENDINGS)


def _files_below(folder: str, *, parents: tuple[str, ...] = ()) -> list[str]:
    """Every file below a folder that is not hidden; links to folders are followed, but not in circles."""
    if (real := os.path.realpath(folder)) in parents:
        return []
    try:
        entries = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        fact = f"cannot be listed ({os.strerror(error.errno or 0)})"
        raise DataError(problem(folder, fact, "allow reading it")) from error
    if "dataset_dict.json" in entries:
        raise DataError(_several_splits_saved(folder))
    if "state.json" in entries and (shards := _shards_in(os.path.join(folder, "state.json"))):
        return [os.path.join(folder, shard) for shard in shards]
    files: list[str] = []
    for path in (os.path.join(folder, name) for name in entries):
        files += _files_below(path, parents=(*parents, real)) if os.path.isdir(path) else [path]
    return files


def _data_files(found: Sequence[str], source: str) -> list[str]:
    """Those of the files that hold records; an unknown kind is an error."""
    with_tokens = {path for path in found if ending_of(path) in TOKEN_ENDINGS}
    files = [path for path in found if not _is_no_data(path, beside_tokens=bool(with_tokens))]
    files = [path for path in files if not _are_labels(path, with_tokens)]
    unknown = [path for path in files if not is_data(path)]
    if unknown:
        fact = "of no kind that holds records"
        remedy = f"remove it from {source}, or name the files to be read by a pattern such as *.jsonl"
        raise DataError(problem(path, fact, remedy) for path in unknown)
    if not files:
        raise DataError(problem(source, "holds no file of records", "name the folder that holds them"))
    return files


def _is_no_data(path: str, *, beside_tokens: bool) -> bool:
    name = os.path.basename(path).lower()
    stem, ending = os.path.splitext(name)
    return (
        (stem in _NO_DATA_STEMS and not is_data(name))
        or name in _NO_DATA_NAMES
        or ending in _NO_DATA_ENDINGS
        or (name == "meta.json" and beside_tokens)
    )


def _are_labels(path: str, with_tokens: set[str]) -> bool:
    """Whether a file holds the labels of the tokens beside it, with which it is read."""
    return path.endswith("_labels.bin") and path.removesuffix("_labels.bin") + ".bin" in with_tokens


def _files_matching(pattern: str) -> list[str]:
    matches = sorted(glob.glob(pattern, recursive=True))
    folders = [path for path in matches if os.path.isdir(path)]
    files = [path for path in matches if not os.path.isdir(path)]
    if folders and "**" not in pattern:
        fact = f"matches the folder {folders[0]}"
        raise DataError(problem(pattern, fact, f"write {pattern}/** to read the files in it"))
    if not files:
        raise DataError(problem(pattern, "matches no file", "check the pattern"))
    return _data_files(files, pattern)


def _shards_in(state: str) -> list[str]:
    """The names of the shards in the order of state.json; none where it is not that of a saved dataset."""
    described = _read_object(state)
    if "_data_files" not in described:
        return []
    try:
        names = [str(shard["filename"]) for shard in cast(list[dict[str, Any]], described["_data_files"])]
    except (TypeError, KeyError):
        names = []
    if not names or any(name != os.path.basename(name) or name in ("", ".", "..") for name in names):
        raise DataError(
            problem(state, "does not name the shards as files beside it", "save the dataset again")
        )
    if described.get("_indices_data_files") or described.get("_indices_files"):
        raise DataError(
            problem(state, "the dataset is a selection by indices", "flatten_indices() and save again")
        )
    return names


def _several_splits_saved(folder: str) -> str:
    named = _read_object(os.path.join(folder, "dataset_dict.json")).get("splits")
    splits = [str(name) for name in cast(list[object], named)] if isinstance(named, list) else []
    remedy = f"write {os.path.join(folder, splits[0] if splits else 'train')}"
    return problem(folder, f"a saved dataset with the splits {', '.join(splits)}", remedy)


def _read_object(path: str) -> dict[str, Any]:
    try:
        value: object = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(problem(path, "cannot be read as JSON", "write or copy the folder again")) from error
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _require_one_split(folder: str, files: Sequence[str]) -> None:
    """A folder with train.jsonl beside test.jsonl is not read as one heap."""
    by_split: dict[str, str] = {}
    for file in files:
        if split := split_of(os.path.relpath(file, folder)):
            by_split.setdefault(split, file)
    if len(by_split) > 1:
        fact = f"holds several splits ({', '.join(by_split.values())})"
        raise DataError(problem(folder, fact, "name the files of one, for instance by a pattern"))


def _require_complete(source: str, files: list[str]) -> list[str]:
    """Shards say how many they are (a-00000-of-00003.parquet): a part of them is an error."""
    numbers: dict[tuple[str, ...], set[int]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file):
            key = (match["before"], match["count"], match["after"] or "")
            numbers.setdefault(key, set()).add(int(match["number"]))
    problems = [
        problem(
            source,
            f"{before}-*-of-{count}{after} are {len(found)} files",
            f"add what is missing of {int(count)}",
        )
        for (before, count, after), found in numbers.items()
        if found != set(range(int(count)))
    ]
    if problems:
        raise DataError(problems)
    return files
