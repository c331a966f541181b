"""Reads what torch.save wrote, without torch; nothing that stands in a file is ever called.

Such a file is a zip archive of entries that are stored, not compressed:

    NAME/data.pkl     a pickle in which tensors name storages: ("storage", FloatStorage, "0", "cpu", 12)
    NAME/data/0 …     the bytes of the storages
    NAME/byteorder    little, or absent in old files

The pickle is followed step by step by a small machine of our own that knows plain values, tensors and nothing
else, so the worst that a file can do is to be refused. Storages are mapped, not read.
"""

import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from finetooth.base.errors import DataError, problem

MAX_PICKLE_BYTES = 16 * 2**20
MAX_DIMENSIONS = 32
MAX_COPIED_BYTES = 64 * 2**20  # or as many as the file has, times eight

_STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "untyped",
}
_STORED_AS = {"bool": "uint8", "bfloat16": "uint16", "untyped": "uint8"}  # what numpy has no word for
_DTYPES = {
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128", "bool"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
}
_TORCH_DTYPES = {f"torch.{name}" for name in _DTYPES}
_ORDERED, _SIZE = "collections.OrderedDict", "torch.Size"
_TENSOR, _TYPED_TENSOR = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"
_PARAMETER = "torch._utils._rebuild_parameter"
_KNOWN = {*_STORAGES, *_TORCH_DTYPES, _ORDERED, _SIZE, _TENSOR, _TYPED_TENSOR, _PARAMETER}
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of a class that was named as one to be read: its attributes, without its class."""

    name: str
    attributes: dict[str, Any]


def read_torch_file(path: str | Path, *, plain_objects: Collection[str] = ()) -> Any:
    """What a file of torch.save holds: dicts, lists, tuples, texts, numbers and numpy arrays.

    A tensor becomes a read-only array, a view of the file; bool becomes a copy, bfloat16 one in float32,
    which holds it exactly. An OrderedDict becomes a dict, torch.Size a tuple, a dtype its name, a parameter
    its tensor. Tensors that share a storage share memory.

    plain_objects: classes ("package.module.Class") whose objects are read as StoredObject
    Raises DataError for any other class, for damage, and for what no torch.save writes.
    """
    try:
        archive = _open_archive(Path(path))
        machine = _Machine(archive, {str(name) for name in plain_objects})
        return machine.run(archive.pickled())
    except _UnreadableError as error:
        raise DataError(problem(path, error.fact, error.remedy)) from error
    except OSError as error:
        raise DataError(problem(path, f"cannot be read ({error.strerror})", "check the path")) from error


class _UnreadableError(Exception):
    def __init__(self, fact: str, remedy: str = "copy or save it again"):
        super().__init__(fact)
        self.fact = fact
        self.remedy = remedy


@dataclass(frozen=True, eq=False)
class _Archive:
    """The entries of a file, each a piece of its bytes: uint8 [size]."""

    content: np.ndarray
    entries: dict[str, tuple[int, int, int]]  # name → offset, size, CRC-32

    def entry(self, name: str) -> np.ndarray:
        if name not in self.entries:
            raise _UnreadableError(f"{name} is missing in it")
        offset, size, checksum = self.entries[name]
        found = self.content[offset : offset + size]
        if len(found) != size:
            raise _UnreadableError(f"{name} is cut off")
        if zlib.crc32(found.data) != checksum:
            raise _UnreadableError(f"{name} differs from its checksum")
        return found

    def pickled(self) -> bytes:
        size = self.entries["data.pkl"][1]
        if size > MAX_PICKLE_BYTES:
            raise _UnreadableError(f"its pickle is longer than {MAX_PICKLE_BYTES:,} bytes")
        return self.entry("data.pkl").tobytes()


def _open_archive(path: Path) -> _Archive:
    if not path.is_file():
        fact = "not a file" if path.exists() else "no such file"
        raise _UnreadableError(fact, "name a file that torch.save wrote")
    with path.open("rb") as file:
        start = file.read(1024)
    if _OLD_MAGIC in start[:64]:
        raise _UnreadableError("written by a torch before 1.6", "load it with torch and save it again")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        struct.error,
        EOFError,
        OverflowError,
    ) as error:
        raise _UnreadableError("not a file of torch.save, or damaged") from error
    content = np.asarray(np.memmap(path, np.uint8, mode="r"))
    names = [info.filename for info in infos]
    if len(set(names)) < len(names):
        raise _UnreadableError("an entry of the archive stands in it twice")
    roots = {name.split("/")[0] for name in names}
    if len(roots) != 1 or any(re.search(r"(^|/)\.\.?(/|$)|\\|^/", name) for name in names):
        raise _UnreadableError("its entries are not those of torch.save")
    root = f"{roots.pop()}/"
    entries = {info.filename.removeprefix(root): _place_of(info, content) for info in infos}
    if "data.pkl" not in entries or any(name.startswith("code/") for name in entries):
        raise _UnreadableError("its entries are not those of torch.save", "save tensors, not a program")
    archive = _Archive(content, entries)
    if "byteorder" in entries and archive.entry("byteorder").tobytes() != b"little":
        raise _UnreadableError("its numbers are big-endian", "save it on another machine")
    return archive


def _place_of(info: zipfile.ZipInfo, content: np.ndarray) -> tuple[int, int, int]:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
        raise _UnreadableError("an entry is compressed or encrypted, which torch.save never does")
    header = content[info.header_offset : info.header_offset + _LOCAL_HEADER.size].tobytes()
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise _UnreadableError("an entry is not where the archive says")
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return info.header_offset + len(header) + name_length + extra_length, info.file_size, info.CRC


class _Name(str):
    """A name of something of Python's, as GLOBAL gives it; never what it names."""


@dataclass(frozen=True, slots=True)
class _Storage:
    kind: str
    content: np.ndarray  # uint8 [bytes]


_MARK = object()


@dataclass(eq=False)
class _Machine:
    """Follows the steps of a pickle: a stack of values, and a memo of those that are used again."""

    archive: _Archive
    plain_objects: Collection[str]
    stack: list[Any] = field(default_factory=list[Any])
    memo: dict[int, Any] = field(default_factory=dict[int, Any])
    storages: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    num_copied: int = 0

    def run(self, pickled: bytes) -> Any:
        """The value that a pickle leaves on the stack."""
        try:
            for operation, argument, _ in pickletools.genops(pickled):
                if operation.name == "STOP":
                    return self._result()
                self._step(operation.name, argument)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise _UnreadableError("its pickle is broken") from error
        raise _UnreadableError("its pickle has no end")

    def _result(self) -> Any:
        (value,) = self.stack
        return value

    def _step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            self._gather_tuple(_TUPLES[name])
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(self._named(argument))
        elif name == "BINPERSID":
            self.stack.append(self._storage(self.stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self.stack.pop(), self.stack.pop()
            self.stack.append(self._built(function, arguments, is_object=name == "NEWOBJ"))
        elif name == "BUILD":
            self._set_state(self.stack.pop())
        else:
            raise _UnreadableError(f"its pickle holds {name}, which a file of tensors does not need")

    def _since_mark(self) -> list[Any]:
        place = max(number for number, value in enumerate(self.stack) if value is _MARK)
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _gather_tuple(self, size: int | None) -> None:
        values = self._since_mark() if size is None else [self.stack.pop() for _ in range(size)][::-1]
        self.stack.append(tuple(values))

    def _fill(self, name: str) -> None:
        num_values = {"APPEND": 1, "SETITEM": 2}.get(name)
        values = (
            self._since_mark() if num_values is None else [self.stack.pop() for _ in range(num_values)][::-1]
        )
        target = self.stack[-1]
        if name.startswith("APPEND") and isinstance(target, list):
            cast(list[Any], target).extend(values)
        elif name.startswith("SETITEM") and isinstance(target, dict):
            keys = values[::2]
            if not all(isinstance(key, str | int | float | None) for key in keys):
                raise _UnreadableError("a key of a dict is neither text nor number")
            cast(dict[Any, Any], target).update(zip(keys, values[1::2], strict=True))
        else:
            raise _UnreadableError("its pickle is broken")

    def _named(self, argument: str | None) -> _Name:
        if argument is None:
            attribute, module = self.stack.pop(), self.stack.pop()
            name = _Name(f"{module}.{attribute}")
        else:
            name = _Name(argument.replace(" ", "."))
        if name not in _KNOWN and name not in self.plain_objects:
            fact = f"it holds an object of {name[:200]!r}, which is no tensor and no plain value"
            raise _UnreadableError(fact, "save it without that object")
        return name

    def _storage(self, identity: Any) -> _Storage:
        word, kind, key, _, _ = identity
        if word != "storage" or not isinstance(kind, _Name) or kind not in _STORAGES:
            raise _UnreadableError("a tensor has no storage")
        if not isinstance(key, str) or not re.fullmatch("[0-9]{1,20}", key):
            raise _UnreadableError("a storage has no number")
        if key not in self.storages:
            self.storages[key] = self.archive.entry(f"data/{key}")
        return _Storage(_STORAGES[kind], self.storages[key])

    def _built(self, function: Any, arguments: Any, *, is_object: bool) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _UnreadableError("its pickle is broken")
        given = cast(tuple[Any, ...], arguments)
        if function in self.plain_objects and is_object and not given:
            return StoredObject(str(function), {})
        if function == _ORDERED and not given:
            return {}
        if function == _SIZE and len(given) == 1 and isinstance(given[0], tuple):
            return cast(tuple[Any, ...], given[0])
        if function == _PARAMETER and len(given) == 3 and isinstance(given[0], np.ndarray):
            return cast(np.ndarray, given[0])
        if function in (_TENSOR, _TYPED_TENSOR):
            return self._tensor(list(given), is_typed=function == _TYPED_TENSOR)
        raise _UnreadableError(f"it calls {function[:200]!r} as torch.save does not")

    def _tensor(self, arguments: list[Any], *, is_typed: bool) -> np.ndarray:
        storage, offset, shape, strides, _, _, *rest = arguments
        if not isinstance(storage, _Storage):
            raise _UnreadableError("a tensor has no storage")
        dtype = storage.kind
        if is_typed and isinstance(rest[0], _Name):
            dtype = str(rest.pop(0)).removeprefix("torch.")
        if any(rest):
            raise _UnreadableError("a tensor is a conjugated or negated view", "save it with .resolve_conj()")
        view = _view(storage.content, dtype, offset, shape, strides)
        if view.size > storage.content.size or dtype in ("bool", "bfloat16"):
            self.num_copied += 4 * view.size
            if self.num_copied > max(MAX_COPIED_BYTES, 8 * self.archive.content.size):
                raise _UnreadableError(
                    "its tensors repeat what is stored without end", "save them with .clone()"
                )
        if dtype == "bfloat16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return view != 0 if dtype == "bool" else view

    def _set_state(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, StoredObject) and isinstance(state, dict):
            target.attributes.update({str(key): value for key, value in cast(dict[Any, Any], state).items()})
        elif not isinstance(target, dict):  # the attributes of an OrderedDict, such as versions, are left out
            raise _UnreadableError("its pickle is broken")


def _view(content: np.ndarray, dtype: str, offset: Any, shape: Any, strides: Any) -> np.ndarray:
    """A view of a storage's bytes as they are stored; every element of it is proved to lie within."""
    if dtype not in _DTYPES:
        raise _UnreadableError(
            f"a tensor has the dtype {dtype[:50]!r}, which is not read", "save another dtype"
        )
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise _UnreadableError("the shape of a tensor is none")
    sizes, steps = cast(tuple[Any, ...], shape), cast(tuple[Any, ...], strides)
    if len(sizes) != len(steps) or len(sizes) > MAX_DIMENSIONS:
        raise _UnreadableError("the shape of a tensor is none")
    if not all(type(value) is int and 0 <= value < 2**48 for value in (offset, *sizes, *steps)):
        raise _UnreadableError("the shape of a tensor is none")
    stored = np.dtype(_STORED_AS.get(dtype, dtype))
    if not all(sizes):
        return np.empty(sizes, stored)
    num_stored = len(content) // stored.itemsize
    if offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True)) >= num_stored:
        raise _UnreadableError("a tensor is larger than its storage")
    flat = content[: num_stored * stored.itemsize].view(stored)[offset:]
    byte_steps = [step * stored.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(flat, sizes, byte_steps, writeable=False)


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
