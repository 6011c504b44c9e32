"""Writes GGUF v3, whose layout `gguf.py` describes. Rows are written as they come: memory holds a few of one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.blocks import BlockFormat
from ops.errors import FormatError

from .gguf import ARRAY, NUMBER_TYPES, TEXT
from .new_file import new_file

ALIGNMENT = 32  # bytes: GGUF's, where general.alignment says nothing
TYPE_NUMBERS = {np.dtype(dtype): number for number, dtype in NUMBER_TYPES.items()}

# What llama.cpp reads as float32 or as an integer of 32 bits, by the ends of keys: a reader gives Python's numbers, and a
# JSON file may write a float as 10000. Other whole numbers are u32, other floats f32.
FLOAT_KEYS = (
    "epsilon", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor",
    "attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias", "logit_scale",
)  # fmt: skip
ARRAY_DTYPES = {"tokenizer.ggml.scores": "<f4", "tokenizer.ggml.token_type": "<i4"}


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written. `chunks` gives uint8[rows, bytes per row] until all rows have come; `shape` is numpy's."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    chunks: Callable[[], Iterable[NDArray[np.uint8]]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[NewTensor],
    *,
    number_types: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Write a file; returns its size in bytes. It appears when it is whole, and not at all after an error.

    metadata: what `read_gguf` gives: text, numbers, lists of texts, arrays of numbers, lists of arrays.
    number_types: numpy's names of the types of single numbers, by key; those of other numbers are llama.cpp's.
    progress: is told how many bytes of the tensors are written, and of how many.

    OptionError: the file exists and `force` is off, or the disk refuses it. FormatError: metadata that GGUF cannot hold.
    """
    header = _header(metadata, tensors, number_types or {})
    total = sum(t.nbytes for t in tensors)
    size = len(header) + sum(padded(t.nbytes) for t in tensors)
    done = 0
    with new_file(path, size, force=force) as write:
        write(header)
        for tensor in tensors:
            end = done + tensor.nbytes
            for chunk in tensor.chunks():
                write(np.ascontiguousarray(chunk).data)
                done += chunk.nbytes
                progress(done, total)
            if done != end:  # all offsets behind it would be wrong
                raise ValueError(f"{tensor.name}: {tensor.nbytes - end + done} bytes came, not {tensor.nbytes}")
            write(bytes(-tensor.nbytes % ALIGNMENT))
    return size


def padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _header(metadata: Mapping[str, Any], tensors: Sequence[NewTensor], number_types: Mapping[str, str]) -> bytes:
    parts = [b"GGUF", pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        try:
            parts += [_text(key), _value(key, value, number_types.get(key))]
        except (UnicodeError, OverflowError):  # half a surrogate pair, a number of more than 64 bits: JSON may have them
            raise FormatError(f"the metadata {key!r} holds what a GGUF file cannot: {str(value)[:50]!r}") from None
    offset = 0
    for t in tensors:
        assert t.format.ggml_type is not None, f"GGUF has no {t.format}"
        dims = tuple(reversed(t.shape))
        parts += [_text(t.name), pack(f"<I{len(dims)}QIQ", len(dims), *dims, t.format.ggml_type, offset)]
        offset += padded(t.nbytes)
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")  # what was no UTF-8 when it was read, as it was
    return pack("<Q", len(raw)) + raw


def _value(key: str, value: Any, dtype: str | None) -> bytes:
    """The value's type, then the value."""
    if isinstance(value, str):
        return pack("<I", TEXT) + _text(value)
    if isinstance(value, (list, np.ndarray)):
        return pack("<I", ARRAY) + _array(key, value)
    number = np.array(value, dtype or _dtype(key, value))
    return pack("<I", TYPE_NUMBERS[number.dtype]) + number.tobytes()


def _array(key: str, items: list[Any] | NDArray[Any]) -> bytes:
    """Type of the items, their number, the items."""
    if isinstance(items, np.ndarray):
        numbers = items.astype(ARRAY_DTYPES.get(key, items.dtype.newbyteorder("<")), copy=False)
        return pack("<IQ", TYPE_NUMBERS[numbers.dtype], len(numbers)) + numbers.tobytes()
    if all(isinstance(item, str) for item in items):
        return pack("<IQ", TEXT, len(items)) + b"".join(map(_text, items))
    return pack("<IQ", ARRAY, len(items)) + b"".join(_array(key, item) for item in items)


def _dtype(key: str, value: bool | int | float) -> str:
    """Of a number that does not say itself: llama.cpp's, and a wider one for what that cannot hold."""
    if isinstance(value, bool):
        return "?"
    if isinstance(value, float) or key.endswith(FLOAT_KEYS):
        return "<f4"
    if value < 0:
        return "<i4" if value >= -(2**31) else "<i8"
    return "<u4" if value < 2**32 else "<u8"
