"""Parameters for others: in a chosen type, in files of a chosen size, named as transformers names them.

model.safetensors                                      where one file holds all
model-00001-of-00002.safetensors  …                    else, with
model.safetensors.index.json                           {"weight_map": {NAME: FILE}, "metadata": {…}}
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import FileEntry, require_space, told_plainly, write_proved
from finetooth.training.tensor_files import write_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Tensors by name, each made when it is asked for.

    shapes: by name, in the order in which they are written
    read:   the tensor of a name, in host memory
    """

    shapes: Mapping[str, Sequence[int]]
    read: Callable[[str], torch.Tensor]


def stored_parameters(folder: Path) -> Parameters:
    """Those in the safetensors files of a folder; nothing is read before it is asked for."""
    files: dict[str, Path] = {}
    shapes: dict[str, Sequence[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no dictionary
                files[name] = file
                shapes[name] = opened.get_slice(name).get_shape()

    def read(name: str) -> torch.Tensor:
        with safe_open(files[name], framework="pt") as opened:
            return opened.get_tensor(name)

    return Parameters(shapes, read)


def held_parameters(tensors: Mapping[str, torch.Tensor]) -> Parameters:
    """Those that are in memory."""
    return Parameters({name: tensor.shape for name, tensor in tensors.items()}, lambda name: tensors[name])


def write_parameters(
    folder: Path, parameters: Parameters, *, dtype: torch.dtype, shard_bytes: int, stem: str = "model"
) -> dict[str, FileEntry]:
    """Writes parameters in a type, one file in memory at a time; returns the files' entries for the manifest.

    shard_bytes: a file holds no more, unless one tensor alone does. stem: what the files' names begin with.
    Raises ConfigError where the type cannot hold a value, FinetoothError where the disk has no room.
    """
    sizes = {name: prod(shape) * dtype.itemsize for name, shape in parameters.shapes.items()}
    require_space(folder, sum(sizes.values()))
    groups = _grouped(sizes, shard_bytes)
    files = [f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        files = [f"{stem}.safetensors"]
    with told_plainly(folder.parent, num_bytes=sum(sizes.values())):
        written = {
            file: write_tensors(
                folder / file, {name: _cast(parameters.read(name), dtype, name) for name in group}
            )
            for file, group in zip(files, groups, strict=True)
        }
    if len(groups) > 1:
        homes = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        index: dict[str, Any] = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": homes}
        name = f"{stem}.safetensors.index.json"
        written[name] = write_proved(folder / name, [json.dumps(index, indent=1).encode()])
    return written


def _grouped(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in groups whose sizes sum to `most` or less, in order.

    >>> _grouped({"a": 2, "b": 1, "c": 3, "d": 1}, 3)
    [['a', 'b'], ['c'], ['d']]
    """
    groups: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if groups[-1] and total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += size
    return groups


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """A floating-point tensor in another type; of whole numbers, the tensor itself."""
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not bool(torch.isfinite(cast).all()):
        fact = f"{name} holds values beyond what {str(dtype).removeprefix('torch.')} can"
        raise ConfigError(problem("--dtype", fact, "write bf16 or fp32"))
    return cast
