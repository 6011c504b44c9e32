"""What lies in a device's memory: arrays, and weights in the blocks of their file."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ops.blocks import BlockFormat

from .panels import Layout
from .runtime import Memory


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array in C order that begins where its memory begins. Floats are float32 (caches float16 too), integers int32."""

    memory: Memory
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def seen_as(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same memory with another shape."""
        return DeviceArray(self.memory, shape, self.dtype)


@dataclass(frozen=True)
class Part:
    """Rows of a weight that lie in one buffer: a device may refuse a buffer as large as the whole."""

    first_row: int
    n_rows: int
    memory: Memory


@dataclass(frozen=True, eq=False)
class PanelWeight:
    """A matrix [m, n] repacked into panels of sixteen rows, for products with x rounded to bytes."""

    layout: Layout
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.memory.nbytes for part in self.parts)


@dataclass(frozen=True, eq=False)
class DeviceWeight:
    """A matrix [m, n] in quantised blocks, as it is in the file: kernels unpack what they need when they need it."""

    format: BlockFormat
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.memory.nbytes for part in self.parts)
