"""Safetensors files: written with proof, piece by piece from host memory; read in parts.

    8 bytes   length of the header, little-endian
    header    {"__metadata__": {"format": "pt"},
               NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
    data      the tensors, one after the other

They are written here, as the library holds up every thread of the process while it writes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from finetooth.base.files import FileEntry, write_proved

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_HEADER_MULTIPLE = 8
_ALIGNMENT_BYTES = 64


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileEntry:
    """Writes whole tensors of host memory under their names; returns the file's entry for the manifest.

    Raises FinetoothError where the disk is full or gives back other bytes.
    """
    # Wide numbers first, so that each tensor begins at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    return write_proved(path, _pieces({name: tensors[name] for name in names}))


def read_like(
    part: Any,
    parameter: torch.Tensor,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A tensor of a file, divided among the ranks as the parameter is.

    part: what `get_slice` of an opened file gives; only what this rank holds is read.
    device: default: the parameter's. dtype: default: the file's.
    """
    own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    device = device or own.device
    if not isinstance(parameter, DTensor) or tuple(part.get_shape()) != tuple(parameter.shape):
        return part[...].to(device, dtype)
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    if 0 in shape:
        local = torch.empty(shape, dtype=parameter.dtype)
    else:
        local = part[tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))]
    local = aligned(local.to(device, dtype))
    whole = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(local, mesh, placements, run_check=False, **whole)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor where torch itself would put it.

    Mapped from a file it begins anywhere, and the last bits of a matrix product depend on it: a resumed run
    would differ from an uninterrupted one.
    """
    is_anywhere = tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT_BYTES
    return tensor.clone() if is_anywhere else tensor


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _HEADER_MULTIPLE) * _HEADER_MULTIPLE)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        as_bytes = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield memoryview(as_bytes)  # pyright: ignore[reportArgumentType] - numpy's arrays are buffers
