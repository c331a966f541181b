"""Which files a source names: one file, a folder, a pattern, a saved dataset, or a dataset of the hub.

A folder is searched to any depth, in the order of its names. What is plainly no data (hidden files, README,
LICENSE, pictures, code, …) is passed over; a file of an unknown kind is an error. A folder that
`datasets.save_to_disk` wrote gives the shards that its state.json names, in that order.
"""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from finetooth.base.errors import DataError, problem
from finetooth.config.sources import SourceConfig
from finetooth.data.sources.file_names import TOKEN_ENDINGS, is_data, is_no_data, require_complete, split_of
from finetooth.data.sources.reading import ending_of, require_file


def files_of(source: SourceConfig, *, place: str) -> list[str]:
    """The files a source names, in the order they are read, written as the user wrote the source.

    place: the setting the source stands in, for messages about the hub. Raises DataError where a path or
    pattern names nothing, where a folder holds what cannot be read, several splits or a part of its shards.
    """
    path = source.path
    if path.startswith("hf://"):
        from finetooth.data.sources.hub_files import hub_files  # the hub's library takes a while to load

        files = hub_files(path, place=place)
    elif os.path.isdir(path):
        files = _data_files(_files_below(path), path)
        _require_one_split(path, files)
    elif not os.path.lexists(path) and glob.has_magic(path):
        files = _files_matching(path)
    else:
        require_file(path)
        return [path]
    require_complete(path, files)
    for file in files:
        require_file(file)
    return files


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
    files = [path for path in found if not is_no_data(path, beside_tokens=bool(with_tokens))]
    files = [path for path in files if not _are_labels(path, with_tokens)]
    unknown = [path for path in files if not is_data(path)]
    if unknown:
        fact = "of no kind that holds records"
        remedy = f"remove it from {source}, or name the files to be read by a pattern such as *.jsonl"
        raise DataError(problem(path, fact, remedy) for path in unknown)
    if not files:
        raise DataError(problem(source, "holds no file of records", "name the folder that holds them"))
    return files


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
