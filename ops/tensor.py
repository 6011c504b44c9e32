"""A tensor as it lies in a file: rows of blocks, floats or quantised, seen through a view that reads nothing until touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .blocks import BlockFormat


@dataclass(frozen=True, eq=False)
class MadeRows:
    """Rows that do not lie in a file as they are wanted: made from it when they are asked for, each time, and not kept.

    `make` takes a slice or an array of row numbers to uint8[rows, bytes per row]. To a reader it looks like an array.
    `sources`: the contiguous arrays that they are made from, so that a backend can tell the system when it has read them.
    """

    shape: tuple[int, int]
    make: Callable[[Any], NDArray[np.uint8]]
    sources: tuple[NDArray[np.uint8] | MadeRows, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        return self.make(rows)


@dataclass(frozen=True, eq=False)
class Tensor:
    """`shape` is numpy's: the last axis is contiguous and cut into blocks. `data` holds uint8[n_rows, bytes per row]."""

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    data: NDArray[np.uint8] | MadeRows

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.data.nbytes

    @property
    def n_params(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def dequantize(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """float32[..., n]: the whole tensor, or the given rows (a slice or an index array) of a matrix."""
        data = self.data[rows]
        values = self.format.dequantize(data.reshape(-1, self.format.block_bytes))
        if isinstance(rows, slice) and rows == slice(None):
            return values.reshape(self.shape)
        return values.reshape(len(data), self.shape[-1])


def dense(weight: Tensor | NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The weight as a plain array of `dtype`, whichever way it is stored."""
    values = weight.dequantize() if isinstance(weight, Tensor) else weight
    return values.astype(dtype, copy=False)
