"""Reads shards of tokenised dialogues, as `torch.save` writes them, without torch.

    train_dataset/000.pth, 001.pth, …
        {"sequences": uint16 or uint32 [total], "offsets": int32 [2 × dialogues]}

`sequences` holds x and y of each dialogue, one behind the other, and `offsets` their lengths: len_x, len_y,
len_x, … x is the input; y are the targets at its end: either the last tokens of x themselves, or what follows
them token by token, so that the last of y stands behind x. Which of both holds, a shard shows.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from finetooth.base.errors import DataError, problem
from finetooth.base.torch_files import read_torch_file

_SHARD_NAME = re.compile(r"[0-9]+\.pth")


def is_shard_folder(path: Path) -> bool:
    """Whether a folder that can be read holds shards: files whose names are numbers and end in .pth."""
    try:
        return path.is_dir() and any(_SHARD_NAME.fullmatch(child.name) for child in path.iterdir())
    except OSError:
        return False


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder in the order of their numbers.

    Raises DataError where one is missing among them, or a .pth file is none of them.
    """
    files = [child for child in folder.iterdir() if child.suffix == ".pth"]
    foreign = sorted(child.name for child in files if not _SHARD_NAME.fullmatch(child.name))
    shards = {int(child.stem): child for child in files if _SHARD_NAME.fullmatch(child.name)}
    problems: list[str] = []
    if foreign:
        fact = f"{', '.join(foreign[:5])} among the shards, whose names are numbers"
        problems.append(problem(folder, fact, "move it elsewhere"))
    if len(shards) < len(files) - len(foreign):
        problems.append(problem(folder, "two shards have the same number", "remove one of them"))
    missing = [number for number in _up_to(max(shards, default=0), len(files)) if number not in shards]
    if missing:
        named = ", ".join(f"{number:03}.pth" for number in missing[:5])
        fact = f"{named} {'is' if len(missing) == 1 else 'are'} missing among the shards"
        problems.append(problem(folder, fact, "put every shard there, or name single ones as sources"))
    if problems:
        raise DataError(problems)
    return [shards[number] for number in sorted(shards)]


def read_shard(path: Path) -> Iterator[tuple[np.ndarray, int] | str]:
    """The dialogues of a shard: token ids [T] and how many at their end are targets; or what is wrong.

    Raises DataError where the file is no shard.
    """
    sequences, lengths = _contents(path)
    ends = np.cumsum(lengths.reshape(-1))
    starts = ends - lengths.reshape(-1)
    parts = [
        (sequences[starts[i] : ends[i]], sequences[starts[i + 1] : ends[i + 1]])
        for i in range(0, len(ends), 2)
    ]
    is_shifted = sum(map(_follows, *zip(*parts, strict=True))) > sum(map(_ends, *zip(*parts, strict=True)))
    for x, y in parts:
        if not len(x):
            yield "its input is empty"
        elif not len(y):
            yield x, 0
        elif is_shifted and _follows(x, y):
            yield np.concatenate([x, y[-1:]]), len(y)
        elif not is_shifted and _ends(x, y):
            yield x, len(y)
        else:
            yield f"its targets are not {'what follows' if is_shifted else 'the end of'} its input"


def _up_to(last: int, num_files: int) -> range:
    """Numbers of which some are looked for; a single absurd one does not make them endless."""
    return range(min(last, num_files + 5))


def _ends(x: np.ndarray, y: np.ndarray) -> bool:
    return 0 < len(y) <= len(x) and np.array_equal(x[-len(y) :], y)


def _follows(x: np.ndarray, y: np.ndarray) -> bool:
    return 0 < len(y) <= len(x) and np.array_equal(x[len(x) - len(y) + 1 :], y[:-1])


def _contents(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """sequences [total] and lengths int64 [dialogues, 2], checked against each other."""
    value = read_torch_file(path)
    remedy = 'a shard holds {"sequences": …, "offsets": …}'
    if not isinstance(value, dict):
        raise DataError(problem(path, "not a dict", remedy))
    held = cast(dict[Any, Any], value)
    arrays: list[np.ndarray] = []
    for name in ("sequences", "offsets"):
        array = held.get(name)
        is_array = isinstance(array, np.ndarray)
        if not is_array or array.ndim != 1 or not np.issubdtype(cast(Any, array).dtype, np.integer):
            raise DataError(problem(path, f"{name!r} is no row of integers in it", remedy))
        arrays.append(cast(np.ndarray, array))
    sequences, offsets = arrays
    if not len(offsets) or len(offsets) % 2 or int(offsets.min()) < 0:
        raise DataError(problem(path, "'offsets' are no pairs of lengths", "write the shard anew"))
    if offsets.max() > len(sequences) or int(offsets.sum(dtype=np.int64)) != len(sequences):
        fact = f"'offsets' do not add up to the {len(sequences):,} tokens of 'sequences'"
        raise DataError(problem(path, fact, "write the shard anew"))
    return sequences, offsets.astype(np.int64).reshape(-1, 2)
