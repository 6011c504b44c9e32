"""Tensors of a file that torch.save wrote, without torch, and without running what the file says: see pickle_machine.py.

Since torch 1.6 (2020) the file is a zip file of entries that are stored as they are:

    NAME/data.pkl        a pickle of the object; in place of each tensor's numbers the key of a storage, and where in it
    NAME/data/KEY        the numbers of a storage
    NAME/byteorder       "little" (newer files)

Before, it was pickles one after the other, and then the storages:

    magic number | protocol 1001 | about the system, "little_endian" among it | the object | list of the storages' keys
    each storage, in the order of that list: number of elements u64 | the numbers

In both a storage is named by a persistent id, ("storage", type, key, device, number of elements), and a tensor is made by
torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...), in elements.
Source: torch/serialization.py (_save, _legacy_save) and torch/_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import unpack_from
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ops.blocks import FORMATS, BlockFormat
from ops.errors import FormatError
from ops.tensor import MadeRows, Tensor

from .file_bytes import Check, file_bytes
from .pickle_machine import PickleMachine
from .stored_zip import entries

MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DIMENSIONS = 4


@dataclass(eq=False)
class Storage:
    """The numbers of one or several tensors; of an old file known only when the pickle has been read."""

    format: BlockFormat
    n: int
    key: str
    numbers: NDArray[np.uint8] | None = None


@dataclass(eq=False)
class Piece:
    """A tensor as the pickle tells it: a part of a storage, all in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path, *, mmap: bool = True) -> tuple[dict[str, Tensor], Check]:
    """The tensors of a file that holds a dict of them, by name, and the check that the file has not shrunk.

    Tensors are views of the mapped file, or with mmap=False of a copy in memory; of one that does not lie there row by row
    (a transposed one) rows are made when they are asked for.
    FormatError: the file is damaged, is none of torch's, holds anything but tensors, or asks for a function to be called.
    """
    data, check = file_bytes(path, mmap=mmap)
    view = data.data
    whole = _of_zip(path, view) if bytes(view[:4]) == b"PK\3\4" else _of_pickles(path, view)
    if not isinstance(whole, dict) or not whole:
        raise FormatError(f"{path}: this file holds no dict of tensors, as a model's file does")
    for name, piece in whole.items():
        if not isinstance(name, str) or not isinstance(piece, Piece):
            raise FormatError(f"{path}: {str(name)[:80]!r} is no tensor, and a model's file holds nothing else")
    return {name: _tensor(path, name, piece) for name, piece in whole.items()}, check


def _of_zip(path: Path, data: memoryview) -> Any:
    places = entries(path, data)
    pickles = [name for name in places if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(f"{path}: this zip file has {len(pickles)} entries data.pkl, and one of torch.save has one")
    folder = pickles[0].removesuffix("data.pkl")
    order_at, n_order = places.get(f"{folder}byteorder", (0, 0))
    if bytes(data[order_at : order_at + min(n_order, 8)]) not in (b"", b"little"):
        raise FormatError(f"{path}: its numbers are big-endian, and only little-endian ones are read; save it again")

    def stored(format: BlockFormat, key: str, n: int) -> Storage:
        at, size = places.get(f"{folder}data/{key}", (0, -1))
        if size < n * format.block_bytes:
            raise FormatError(f"{path}: storage {key[:80]!r} of {n} elements is missing or cut short; download it again")
        return Storage(format, n, key, np.frombuffer(data[at : at + n * format.block_bytes], np.uint8))

    at, size = places[pickles[0]]
    return _machine(path, data[: at + size], at, stored).run()


def _of_pickles(path: Path, data: memoryview) -> Any:
    storages: dict[str, Storage] = {}

    def stored(format: BlockFormat, key: str, n: int) -> Storage:
        storage = storages.setdefault(key, Storage(format, n, key))
        if (storage.format, storage.n) != (format, n):
            raise FormatError(f"{path}: storage {key[:80]!r} is described in two ways; the file is damaged")
        return storage

    machine = _machine(path, data, 0, stored)
    magic, protocol, system = machine.run(), machine.run(), machine.run()
    if magic != MAGIC_NUMBER or protocol != PROTOCOL or not isinstance(system, dict):
        raise FormatError(
            f"{path}: this is no file of torch.save: it begins neither as a zip file nor with torch's magic number"
        )
    if system.get("little_endian") is not True:
        raise FormatError(f"{path}: its numbers are big-endian, and only little-endian ones are read; save it again")
    whole, keys = machine.run(), machine.run()
    if not isinstance(keys, list) or len(keys) != len(storages):
        raise machine.damaged("its list of storages does not fit the tensors")
    at = machine.at
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.numbers is not None:
            raise machine.damaged("its list of storages does not fit the tensors")
        end = at + 8 + storage.n * storage.format.block_bytes
        if end > len(data) or unpack_from("<Q", data, at)[0] != storage.n:
            raise FormatError(
                f"{path}: storage {key[:80]!r} of {storage.n} elements is cut short or damaged; download it again"
            )
        storage.numbers = np.frombuffer(data[at + 8 : end], np.uint8)
        at = end
    return whole


def _machine(path: Path, data: memoryview, at: int, stored: Callable[[BlockFormat, str, int], Storage]) -> PickleMachine:
    """The machine whose pickles can name what a dict of tensors takes: these, and nothing else."""
    known: dict[str, Any] = {
        "collections.OrderedDict": _ordered_dict,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch.FloatStorage": FORMATS["F32"],
        "torch.HalfStorage": FORMATS["F16"],
        "torch.BFloat16Storage": FORMATS["BF16"],
    }

    def persistent(id: Any) -> Storage:
        kind, format, key, _, n = id[:5]  # a sixth, of old files, is None unless a storage is a part of another
        if kind != "storage" or not isinstance(format, BlockFormat) or not isinstance(key, str) or any(id[5:]):
            raise ValueError
        return stored(format, key, _size(n))

    return PickleMachine(path, data, at, known, persistent)


# What the pickle may call. A ValueError or TypeError of theirs is told as damage.


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise ValueError
    return {}


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Piece:
    storage, offset, shape, strides = arguments[:4]  # then whether it wants a gradient, and hooks, which are for training
    if not isinstance(storage, Storage) or not len(shape) == len(strides) <= MAX_DIMENSIONS:
        raise ValueError
    return Piece(storage, _size(offset), tuple(map(_size, shape)), tuple(map(_size, strides)))


def _rebuild_parameter(arguments: tuple[Any, ...]) -> Piece:
    if not isinstance(arguments[0], Piece):
        raise ValueError
    return arguments[0]


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError
    return value


def _tensor(path: Path, name: str, piece: Piece) -> Tensor:
    storage, shape, n = piece.storage, piece.shape, prod(piece.shape)
    last = piece.offset + sum((size - 1) * stride for size, stride in zip(shape, piece.strides, strict=True))
    if not shape or not 0 < n <= storage.n or last >= storage.n or storage.numbers is None:
        raise FormatError(
            f"{path}: tensor {name[:80]!r} of shape {shape} from element {piece.offset} on does not lie in its storage of "
            f"{storage.n}; the file is damaged"
        )
    width = storage.format.block_bytes
    n_rows, row_bytes = prod(shape[:-1]), shape[-1] * width
    if piece.strides == _row_by_row(shape):
        start = piece.offset * width
        rows = storage.numbers[start : start + n_rows * row_bytes].reshape(n_rows, row_bytes)
        return Tensor(name, shape, storage.format, rows)
    if len(shape) > 2:
        raise FormatError(f"{path}: tensor {name[:80]!r} does not lie row by row in the file; save it again, contiguous")
    numbers = storage.numbers.view(f"<u{width}")[piece.offset :]
    matrix = as_strided(numbers, shape, [stride * width for stride in piece.strides], writeable=False).reshape(n_rows, -1)
    made = MadeRows((n_rows, row_bytes), lambda rows: _bytes(matrix[rows]), (storage.numbers,))
    return Tensor(name, shape, storage.format, made)


def _row_by_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _bytes(matrix: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(matrix).view(np.uint8)
