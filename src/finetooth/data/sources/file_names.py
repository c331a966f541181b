"""What the names of files tell: what a file holds, to which split it belongs, whether shards are missing."""

import os
import re
from collections.abc import Sequence

from finetooth.base.errors import DataError, problem
from finetooth.data.sources.reading import COLUMNAR_ENDINGS, COMPRESSED, TEXT_ENDINGS, ending_of

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


def is_no_data(path: str, *, beside_tokens: bool) -> bool:
    """Whether a file is plainly no data: documentation, pictures, code, or notes that `datasets` wrote."""
    name = os.path.basename(path).lower()
    stem, ending = os.path.splitext(name)
    return (
        (stem in _NO_DATA_STEMS and not is_data(name))
        or name in _NO_DATA_NAMES
        or ending in _NO_DATA_ENDINGS
        or (name == "meta.json" and beside_tokens)
    )


def require_complete(source: str, files: Sequence[str]) -> None:
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
