"""The files that hold a model's parameters, looked at before anything is built or allocated after them.

Either `model.safetensors`, or `model.safetensors.index.json` and the files that it names:

    {"metadata": {…}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", …}}
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open

from finetooth.base.errors import ConfigError, problem

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHOWN_NAMES = 5
# Both are far above what models have; the library allows headers of 100 MB, which unfold to a gigabyte.
_LARGEST_HEADER = 32 << 20
_LARGEST_INDEX = 64 << 20


class _Index(msgspec.Struct):
    metadata: dict[str, Any]
    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is stored: the number of tensors, and of numbers in all of them."""

    num_tensors: int
    num_elements: int


def examine_weight_files(folder: Path, place: str) -> Extent:
    """Looks at the index and at the header of every file, as far as transformers will read them.

    place: what names the model, for messages. Raises ConfigError, with every file that cannot be used, where
    a name leads out of the folder, a file is missing, or a header does not describe the file that it heads.
    """
    files = weight_files(folder, place)
    facts = {path: _fault_of(path) for path in files}
    problems = [
        problem(place, f"{path}: {fact}", "use an intact copy") for path, fact in facts.items() if fact
    ]
    if problems:
        raise ConfigError(problems)
    sizes = [size for path in files for size in _sizes_in(path)]
    return Extent(len(sizes), sum(sizes))


def some_names(names: list[str]) -> str:
    """The first of the names, to be shown in a sentence."""
    return ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")


def weight_files(folder: Path, place: str) -> list[Path]:
    """The files that transformers would read: one of a fixed name, or else those of the index."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        fact = f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}"
        raise ConfigError(problem(place, fact, "name a folder with parameters"))
    names = sorted(set(_read_index(index, place).weight_map.values()))
    if strange := [name for name in names if not _is_plain(name)]:
        fact = f"{index} names what is no *.safetensors file of this folder: {some_names(strange)}"
        raise ConfigError(problem(place, fact, "use a model that you trust"))
    if missing := [name for name in names if not (folder / name).is_file()]:
        fact = f"{index} names files that are not there: {some_names(missing)}"
        raise ConfigError(problem(place, fact, "fetch or copy the whole model"))
    return [folder / name for name in names]


def _read_index(path: Path, place: str) -> _Index:
    remedy = "use an intact copy"
    if path.stat().st_size > _LARGEST_INDEX:
        raise ConfigError(problem(place, f"{path}: larger than {_LARGEST_INDEX >> 20} MB", remedy))
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Index)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(problem(place, f"{path}: no index of parameters: {error}", remedy)) from error


def _is_plain(name: str) -> bool:
    """Whether it is the bare name of a safetensors file, on any system."""
    is_bare = PurePosixPath(name).name == name and not {"\\", "\0", ":"} & set(name)
    return is_bare and name.endswith(".safetensors")


def _fault_of(path: Path) -> str | None:
    """What is wrong with a file's header; nothing is allocated before its length is known to be sane."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    if size < 8 or length > size - 8:
        return f"cut short, or no safetensors file: {size:,} bytes"
    if length > _LARGEST_HEADER:
        return f"its header has {length:,} bytes; {_LARGEST_HEADER >> 20} MB are allowed"
    try:
        with safe_open(path, framework="np"):
            return None
    except SafetensorError as error:
        return f"{error}"


def _sizes_in(path: Path) -> list[int]:
    with safe_open(path, framework="np") as file:
        return [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118 - no mapping
