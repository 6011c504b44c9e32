"""GGUF, versions 2 and 3: the file format of llama.cpp.

    magic "GGUF" | version u32 | number of tensors u64 | number of metadata pairs u64
    each pair     key text | type u32 | value
    each tensor   name text | number of dimensions u32 | dimensions u64, contiguous first | ggml type u32 | offset u64
    padding to a multiple of general.alignment (32 if not given), from where the offsets count
    the tensors' data, each at a multiple of the alignment

A text is its length in bytes u64, then UTF-8; an array is its elements' type u32, their number u64, then the elements.
All numbers are little-endian. Source: ggml's gguf.h and docs/gguf.md. Whatever a file says about a size is compared
with the file's size before it is believed, so a damaged file costs no more memory than a sound one of its size.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.blocks import BY_GGML_TYPE
from ops.errors import FormatError
from ops.tensor import Tensor

from .file_bytes import file_bytes
from .model_file import ModelFile
from .split_gguf import is_part, join_parts

NUMBER_TYPES = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
TEXT, ARRAY = 8, 9
MAX_ARRAY_DEPTH = 4  # arrays of arrays; llama.cpp reads none at all
MAX_TEXT_BYTES = 2**24  # a chat template has thousands; a damaged length must not make a str of gigabytes of weights
MAX_NAME_BYTES = 65535  # of a key, by GGUF's specification; the same is granted to a tensor's name
MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS

# Types of ggml.h without a reader here, so that an error can name them.
OTHER_GGML_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL",
    21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4",
    32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
    39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip


def read_gguf(path: Path, *, mmap: bool = True) -> ModelFile:
    """Open a GGUF file, or with one part of a model all of them (split_gguf.py).

    Its tensors are views of the mapped file, or with mmap=False of a copy in memory.
    Metadata: numbers are int, float or bool; texts str, with bytes that are not UTF-8 as lone surrogates; arrays are
    read-only numpy arrays of numbers, list[str], or lists of arrays.
    Raises FormatError for whatever is wrong with the content, OSError if the file cannot be opened.
    """
    file = _read_one(path, mmap)
    return join_parts(file, lambda part: _read_one(part, mmap)) if is_part(file) else file


def _read_one(path: Path, mmap: bool) -> ModelFile:
    data, check = file_bytes(path, mmap=mmap)
    header = _Header(path, data)
    version = header.version()
    n_tensors, n_pairs = header.number("<u8"), header.number("<u8")
    metadata = header.metadata(n_pairs)
    places = header.tensors(n_tensors)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise header.error(f"general.alignment is {alignment!r}, but only a power of two is possible")
    data_start = -(-header.at // alignment) * alignment
    tensors = {}
    for name, (dims, ggml_type, offset) in places.items():
        if offset % alignment:
            raise header.error(f"tensor {name!r} has offset {offset}, not a multiple of the alignment {alignment}")
        tensors[name] = _tensor(header, name, dims, ggml_type, data_start + offset)
    return ModelFile(path, f"GGUF v{version}", metadata, tensors, mmap, check, header.number_types)


def _tensor(header: _Header, name: str, dims: list[int], ggml_type: int, start: int) -> Tensor:
    """The view of a tensor's data, which begins at byte `start` of the file."""
    format = BY_GGML_TYPE.get(ggml_type)
    if format is None:
        known = OTHER_GGML_TYPES.get(ggml_type)
        which = f"ggml type {ggml_type} ({known}), not read here" if known else f"unknown ggml type {ggml_type}"
        readable = ", ".join(f.name for f in BY_GGML_TYPE.values())
        raise header.error(f"tensor {name!r} has {which}; use a file quantised to one of {readable}")
    if dims[0] % format.block_size:
        raise header.error(f"tensor {name!r}: rows of {dims[0]}, but {format} takes a multiple of {format.block_size}")
    n_rows, row_bytes = prod(dims[1:]), format.row_bytes(dims[0])
    end = start + n_rows * row_bytes
    if end > len(header.data):
        raise header.error(
            f"tensor {name!r} of shape {dims} should end at byte {end}, but the file has {len(header.data)}; "
            "it is cut short or damaged: download it again"
        )
    return Tensor(name, tuple(reversed(dims)), format, header.data[start:end].reshape(n_rows, row_bytes))


class _Header:
    """Reads what comes before the tensors' data, in order; what would leave the file is a FormatError."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path = path
        self.data = data
        self.view = data.data
        self.at = 0  # position of the next byte
        self.part = "the header"  # for errors: where in the file we are
        self.number_types: dict[str, str] = {}  # of metadata that is one number

    def error(self, sentence: str) -> FormatError:
        return FormatError(f"{self.path}: {sentence}")

    def version(self) -> int:
        if bytes(self.take(4)) != b"GGUF":
            raise self.error("this is not a GGUF file: it does not begin with the letters GGUF")
        version: int = self.number("<u4")
        if version & 0xFFFF == 0:
            raise self.error("this GGUF file is big-endian, and only little-endian ones are read; convert it again")
        if version not in (2, 3):
            raise self.error(f"this is GGUF version {version}, and only versions 2 and 3 are read; convert it again")
        return version

    def metadata(self, n_pairs: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        for i in range(n_pairs):
            self.part = f"metadata pair {i} of {n_pairs}"
            key = self.name()
            if key in pairs:
                raise self.error(f"the metadata key {key!r} occurs twice; the file is damaged")
            self.part = f"the metadata value of {key!r}"
            value_type = self.number("<u4")
            pairs[key] = self.value(value_type)
            if value_type in NUMBER_TYPES:
                self.number_types[key] = NUMBER_TYPES[value_type]
        return pairs

    def tensors(self, n_tensors: int) -> dict[str, tuple[list[int], int, int]]:
        """Dimensions (contiguous one first), ggml type and offset of each tensor, by its name."""
        places: dict[str, tuple[list[int], int, int]] = {}
        for i in range(n_tensors):
            self.part = f"the description of tensor {i} of {n_tensors}"
            name = self.name()
            if name in places:
                raise self.error(f"the tensor {name!r} occurs twice; the file is damaged")
            self.part = f"the description of tensor {name!r}"
            n_dims = self.number("<u4")
            if not 1 <= n_dims <= MAX_DIMENSIONS:
                raise self.error(f"tensor {name!r} has {n_dims} dimensions, but 1 to {MAX_DIMENSIONS} are possible")
            dims = [self.number("<u8") for _ in range(n_dims)]
            if 0 in dims:
                raise self.error(f"tensor {name!r} of shape {dims} has no elements; the file is damaged")
            places[name] = dims, self.number("<u4"), self.number("<u8")
        return places

    def take(self, n_bytes: int) -> memoryview:
        start, self.at = self.at, self.at + n_bytes
        if self.at > len(self.view):
            raise self.error(
                f"the file has {len(self.view)} bytes and ends within {self.part}, which needs {self.at}; "
                "it is cut short or damaged: download it again"
            )
        return self.view[start : self.at]

    def number(self, dtype: str) -> Any:
        return self.numbers(dtype, 1)[0].item()

    def numbers(self, dtype: str, n: int) -> NDArray[Any]:
        """A copy, so that it outlives the mapping; read-only, because it is seen through bytes."""
        values = np.frombuffer(bytes(self.take(n * np.dtype(dtype).itemsize)), dtype)
        return values.view(np.uint8) != 0 if dtype == "?" else values  # any byte but 0 is true

    def name(self) -> str:
        """A key or a tensor's name."""
        n_bytes = self.number("<u8")
        if not 1 <= n_bytes <= MAX_NAME_BYTES:
            raise self.error(f"{self.part} has a name of {n_bytes} bytes, but 1 to {MAX_NAME_BYTES} are possible")
        raw = bytes(self.take(n_bytes))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"{self.part} has the name {raw[:80]!r}, which is not UTF-8; the file is damaged") from None

    def value(self, value_type: int, depth: int = 0) -> Any:
        if value_type in NUMBER_TYPES:
            return self.number(NUMBER_TYPES[value_type])
        if value_type == TEXT:
            return self.texts(1)[0]
        if value_type == ARRAY:
            return self.array(depth + 1)
        raise self.unknown(value_type)

    def unknown(self, value_type: int) -> FormatError:
        return self.error(f"{self.part} has type {value_type}, which GGUF does not know; the file is damaged")

    def array(self, depth: int) -> NDArray[Any] | list[Any]:
        item_type, n = self.number("<u4"), self.number("<u8")
        if depth > MAX_ARRAY_DEPTH:
            raise self.error(f"{self.part} has arrays nested deeper than {MAX_ARRAY_DEPTH}; the file is damaged")
        if item_type in NUMBER_TYPES:
            return self.numbers(NUMBER_TYPES[item_type], n)
        if item_type == TEXT:
            return self.texts(n)
        if item_type == ARRAY:
            return [self.value(ARRAY, depth) for _ in range(n)]
        raise self.unknown(item_type)

    def texts(self, n: int) -> list[str]:
        """A vocabulary has some 100,000 of them, so this loop calls no method of ours."""
        view, at, read_length = self.view, self.at, Struct("<Q").unpack_from
        last_length_at = len(view) - 8
        texts = []
        for _ in range(n):
            if at > last_length_at:
                self.take(at + 8 - self.at)  # raises: the length, or the text before it, leaves the file
            start = at + 8
            (n_bytes,) = read_length(view, at)
            if n_bytes > MAX_TEXT_BYTES:
                raise self.error(f"{self.part} has a text of {n_bytes} bytes, but {MAX_TEXT_BYTES} are the limit")
            at = start + n_bytes
            texts.append(str(view[start:at], "utf-8", "surrogateescape"))
        self.take(at - self.at)
        return texts
