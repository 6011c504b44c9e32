"""safetensors, Hugging Face's file of tensors: a header in JSON, then the tensors' bytes. Read without its library.

    number of bytes of the header, u64, little-endian
    header   {"NAME": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [start, end]}, ..., "__metadata__": {...}}
    data     from where the offsets count; the tensors fill it, one after the other, without gaps

Source: the format's section in the README of github.com/huggingface/safetensors. Every size is compared with the file's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from ops.blocks import FORMATS
from ops.errors import FormatError
from ops.tensor import Tensor

from .file_bytes import Check, file_bytes
from .json_object import JsonObject, parse_object

MAX_HEADER_BYTES = 2**24  # some 100 bytes a tensor: real ones stay below 1 MB
MAX_DIMENSIONS = 4  # as in GGUF; the weights of the models that run here have two


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor; start and stop are bytes of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class SafetensorsFile:
    """An opened file: `entries` by the tensors' names. No tensor has been read."""

    path: Path
    entries: dict[str, Entry]
    data: NDArray[np.uint8]
    check: Check  # raises FormatError if the file has shrunk since

    def tensor(self, stored: str, name: str) -> Tensor:
        """The tensor of that entry, as a view; `name` is its name from now on.

        FormatError: its dtype is none of F32, F16 and BF16, or its shape does not fit to its bytes.
        """
        entry = self.entries[stored]
        format = FORMATS.get(entry.dtype) if entry.dtype in ("F32", "F16", "BF16") else None
        if format is None:
            raise self.error(
                f"tensor {stored!r} has dtype {entry.dtype[:80]!r}, and only F32, F16 and BF16 are read; "
                "take the model's files in one of these"
            )
        n_dims = len(entry.shape)
        n_bytes = prod(entry.shape) * format.block_bytes if 1 <= n_dims <= MAX_DIMENSIONS else 0
        if n_bytes == 0 or n_bytes != entry.stop - entry.start:
            raise self.error(
                f"tensor {stored!r} of shape {str(list(entry.shape))[:80]} in {entry.dtype} has "
                f"{entry.stop - entry.start} bytes, which do not fit; the file is damaged: download it again"
            )
        rows = self.data[entry.start : entry.stop].reshape(prod(entry.shape[:-1]), -1)
        return Tensor(name, entry.shape, format, rows)

    def error(self, sentence: str) -> FormatError:
        return FormatError(f"{self.path}: {sentence}")


def read_safetensors(path: Path, *, mmap: bool = True) -> SafetensorsFile:
    """Open a .safetensors file: its header is read. FormatError for whatever is wrong with it."""
    data, check = file_bytes(path, mmap=mmap)
    header_size = int(data[:8].view("<u8")[0]) if len(data) >= 8 else 0
    if not 2 <= header_size <= min(len(data) - 8, MAX_HEADER_BYTES) or data[8] != ord("{"):
        raise FormatError(
            f"{path}: this is no safetensors file, or it is cut short: it has {len(data)} bytes, "
            f"and its header should have {header_size}; download it again"
        )
    header = parse_object(data[8 : 8 + header_size].data, f"{path}, header")
    body = data[8 + header_size :]
    entries = {name: _entry(path, name, value) for name, value in header.items() if name != "__metadata__"}
    _check_places(path, entries, len(body))
    return SafetensorsFile(path, entries, body, check)


def _entry(path: Path, name: str, value: object) -> Entry:
    if not isinstance(value, dict):
        raise FormatError(f"{path}: the header's entry for {name[:80]!r} is no object; the file is damaged")
    entry = JsonObject(f"{path}: tensor {name[:80]!r}", value)
    shape, offsets = value.get("shape"), value.get("data_offsets")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise entry.error("its shape or its data_offsets are not whole numbers; the file is damaged")
    return Entry(entry.text("dtype"), tuple(shape), start=offsets[0], stop=offsets[1])


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_places(path: Path, entries: dict[str, Entry], n_bytes: int) -> None:
    """The tensors must fill the data: then none lies outside the file, and no two of them share a byte."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end or entry.stop < entry.start:
            raise FormatError(
                f"{path}: tensor {name[:80]!r} has the bytes {entry.start} to {entry.stop} of the data, "
                f"but the one before it ends at {end}; the file is damaged: download it again"
            )
        end = entry.stop
    if end != n_bytes:
        raise FormatError(
            f"{path}: the tensors take {end} bytes, but the file has {n_bytes} for them; "
            "it is cut short or damaged: download it again"
        )
