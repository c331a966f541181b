"""Files of torch.save are read as torch reads them, and nothing in a file is ever called."""

import collections
import contextlib
import functools
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetooth.base import torch_files
from finetooth.base.errors import DataError
from finetooth.base.torch_files import StoredObject, read_torch_file

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


class Settings:
    """A class of somebody else's, as checkpoints hold one."""

    def __init__(self) -> None:
        self.num_heads = 4
        self.name = "small"


SETTINGS = f"{Settings.__module__}.{Settings.__qualname__}"


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        expected = theirs.detach().float() if theirs.dtype == torch.bfloat16 else theirs.detach()
        return ours.dtype == expected.numpy().dtype and np.array_equal(ours, expected.numpy())
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs and type(ours) is type(theirs)


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def write_archive(path: Path, pickled: bytes, storage: bytes = b"\0" * 16, **entries: bytes) -> Path:
    """A file whose pickle was made by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read_torch_file(path, **options)
    (text,) = error.value.problems
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype):
    values = torch.tensor([0, 1, 2, 3, 100], dtype=torch.float32).to(dtype)
    assert same(read_torch_file(saved(tmp_path / "a.pt", values)), values)


def test_views_shared_storages_and_parameters(tmp_path: Path):
    base = torch.arange(24.0)
    value = {
        "slice": base[3:9],
        "transposed": base.view(4, 6).t(),
        "steps": base[::5],
        "nothing": torch.empty(0, 3),
        "number": torch.tensor(2.5),
        "expanded": torch.ones(1).expand(3, 7),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    found = read_torch_file(saved(tmp_path / "a.pt", value))
    assert same(found, value)
    assert np.shares_memory(found["slice"], found["transposed"])
    with pytest.raises(ValueError, match="read-only"):
        found["slice"][0] = 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_checkpoints_hold_beside_tensors(tmp_path: Path, protocol: int):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numbers": [1, -1, 2**40, 0.5, True, None, (), (1, 2, 3, 4), -(2**70)],
        "ordered": collections.OrderedDict([("b", 1), ("a", "é")]),
        7: b"bytes" if protocol > 2 else "text",
    }
    path = saved(tmp_path / "a.pt", value, pickle_protocol=protocol)
    assert same(read_torch_file(path), value)


def test_sizes_and_dtypes_become_plain(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"size": torch.Size([2, 3]), "dtype": torch.bfloat16})
    assert read_torch_file(path) == {"size": (2, 3), "dtype": "torch.bfloat16"}


def test_a_foreign_class_is_refused_or_read_without_its_class(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"config": Settings(), "x": torch.ones(1)})
    assert refusal(path) == (
        f"it holds an object of {SETTINGS!r}, which is no tensor and no plain value; "
        "save it without that object"
    )
    found = read_torch_file(path, plain_objects=[SETTINGS])
    assert found["config"] == StoredObject(SETTINGS, {"num_heads": 4, "name": "small"})


class Bomb:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder / "went off"),)


def test_a_pickle_that_calls_something_calls_nothing(tmp_path: Path):
    path = saved(tmp_path / "a.pt", {"x": Bomb(tmp_path)})
    assert refusal(path) == (
        "it holds an object of 'posix.mkdir', which is no tensor and no plain value; "
        "save it without that object"
    )
    assert "as torch.save does not" in refusal(path, plain_objects=["posix.mkdir"])
    assert not (tmp_path / "went off").exists()
    with pytest.raises(FileExistsError):  # the control: pickle itself would have called it
        pickle.loads(pickle.dumps([Bomb(tmp_path), Bomb(tmp_path)]))


def test_a_step_that_tensors_do_not_need_is_refused(tmp_path: Path):
    path = write_archive(tmp_path / "a.pt", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.")
    assert "'builtins.eval'" in refusal(path)
    path = write_archive(tmp_path / "b.pt", b"(S'1'\nibuiltins\neval\n.")
    assert refusal(path) == (
        "its pickle holds STRING, which a file of tensors does not need; copy or save it again"
    )


TENSOR = "ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"


def hand_made(offset: bytes, shape: bytes, strides: bytes, key: bytes = b"X\x01\x00\x00\x000") -> bytes:
    """A tensor over four float32 numbers."""
    storage = key + b"X\x03\x00\x00\x00cpuK\x04tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02" + TENSOR.encode() + storage + offset + shape + strides + hooks + b"tR."


def test_a_tensor_stays_within_its_storage(tmp_path: Path):
    path = write_archive(tmp_path / "a.pt", hand_made(b"K\x00", b"K\x04\x85", b"K\x01\x85"))
    assert read_torch_file(path).tolist() == [0, 0, 0, 0]
    outside = [
        hand_made(b"K\x01", b"K\x04\x85", b"K\x01\x85"),
        hand_made(b"K\x00", b"K\x05\x85", b"K\x01\x85"),
        hand_made(b"K\x00", b"K\x02\x85", b"K\x04\x85"),
        hand_made(b"K\x00", b"J\xff\xff\xff\x7f\x85", b"J\xff\xff\xff\x7f\x85"),
    ]
    for number, pickled in enumerate(outside):
        path = write_archive(tmp_path / f"{number}.pt", pickled)
        assert refusal(path) == "a tensor is larger than its storage; copy or save it again"
    for number, pickled in enumerate(
        [
            hand_made(b"J\xff\xff\xff\xff", b"K\x04\x85", b"K\x01\x85"),
            hand_made(b"K\x01", b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
            hand_made(b"K\x01", b"K\x04\x85", b")"),
            hand_made(b"K\x01", b"K\x04", b"K\x04"),
            hand_made(b"N", b"K\x04\x85", b"K\x01\x85"),
        ]
    ):
        path = write_archive(tmp_path / f"shape {number}.pt", pickled)
        assert refusal(path) == "the shape of a tensor is none; copy or save it again"


def test_bombs_are_refused_before_they_grow(tmp_path: Path):
    repeated = hand_made(b"K\x00", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85")
    path = write_archive(tmp_path / "a.pt", repeated)
    tracemalloc.start()
    assert refusal(path).startswith("its tensors repeat what is stored without end")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    memo = b"\x80\x02Nr" + struct.pack("<I", 2**31) + b"."  # pickle would make room for 2**31 values
    assert read_torch_file(write_archive(tmp_path / "b.pt", memo)) is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    deep = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns."  # hashing this key would end the process
    assert "neither text nor number" in refusal(write_archive(tmp_path / "c.pt", deep))


def test_a_long_pickle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_files, "MAX_PICKLE_BYTES", 100)
    path = saved(tmp_path / "a.pt", list(range(100)))
    assert refusal(path) == "its pickle is longer than 100 bytes; copy or save it again"


def test_compressed_entries_are_refused(tmp_path: Path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**24)
    assert path.stat().st_size < 2**16
    assert "compressed or encrypted" in refusal(path)


@pytest.mark.parametrize("name", ["../data/0", "/etc/x", "archive/../x", "archive\\..\\x", "other/x"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str):
    path = write_archive(tmp_path / "a.pt", pickle.dumps(1, 2), **{name: b"x"})
    assert refusal(path) == "its entries are not those of torch.save; copy or save it again"


def test_storages_with_odd_keys_are_refused(tmp_path: Path):
    odd = b"X\x0b\x00\x00\x00../data.pkl"
    path = write_archive(tmp_path / "a.pt", hand_made(b"K\x00", b"K\x04\x85", b"K\x01\x85", key=odd))
    assert refusal(path) == "a storage has no number; copy or save it again"
    absent = b"X\x01\x00\x00\x007"
    path = write_archive(tmp_path / "b.pt", hand_made(b"K\x00", b"K\x04\x85", b"K\x01\x85", key=absent))
    assert refusal(path) == "data/7 is missing in it; copy or save it again"


def test_other_files_are_told_apart(tmp_path: Path):
    old = saved(tmp_path / "old.pt", torch.ones(2), _use_new_zipfile_serialization=False)
    assert refusal(old) == "written by a torch before 1.6; load it with torch and save it again"
    text = tmp_path / "text.pt"
    text.write_text("PK but no archive")
    assert refusal(text) == "not a file of torch.save, or damaged; copy or save it again"
    assert refusal(tmp_path) == "not a file; name a file that torch.save wrote"
    assert refusal(tmp_path / "none.pt") == "no such file; name a file that torch.save wrote"
    conjugated = saved(tmp_path / "c.pt", torch.ones(2, dtype=torch.complex64).conj())
    assert refusal(conjugated) == "a tensor is a conjugated or negated view; save it with .resolve_conj()"
    eighth = saved(tmp_path / "8.pt", torch.ones(2).to(torch.float8_e4m3fn))
    assert "torch.float8_e4m3fn" in refusal(eighth)


def test_a_changed_byte_in_a_storage_is_noticed(tmp_path: Path):
    path = saved(tmp_path / "a.pt", torch.arange(1000))
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000).numpy().tobytes()) + 4000] ^= 1
    path.write_bytes(content)
    assert refusal(path) == "data/0 differs from its checksum; copy or save it again"


@functools.cache
def small_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6).view(2, 3), "b": [1.5, "x"]}, buffer)
    return buffer.getvalue()


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3), st.floats(0, 2))
def test_damage_anywhere_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], cut: float
):
    content = bytearray(small_file())
    for place, byte in changes:
        content[round(place * (len(content) - 1))] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content[: round(cut * len(content))])
    with contextlib.suppress(DataError):
        assert set(read_torch_file(path)) == {"a", "b"} or bytes(content) != small_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=200)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.binary(max_size=12))
def test_any_pickle_is_an_error_or_a_value(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], inserted: bytes
):
    pickled = bytearray(hand_made(b"K\x00", b"K\x04\x85", b"K\x01\x85"))
    for place in places:
        pickled[place % len(pickled) : place % len(pickled)] = inserted
    path = write_archive(tmp_path_factory.getbasetemp() / "pickle.pt", bytes(pickled))
    with contextlib.suppress(DataError):
        read_torch_file(path)
