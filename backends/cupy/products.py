"""Products with many tokens: a bounded chunk of the weight's rows is dequantised, and cuBLAS multiplies it.

Each number of the weight is unpacked once for all tokens then, and cuBLAS, which only knows floats, is as fast as the GPU is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import ops

from ..device.array import DeviceArray, DeviceWeight
from ..device.launch import TABLE, Launch
from ..device.runtime import Memory, Runtime

CUBLAS = "cublas"  # the source of a launch that calls the library instead of a kernel
LARGE = 64  # tokens from which on it is worth to write the weight to memory in float32, and to read it again
CHUNK = 8 << 20  # weights dequantised at a time: 32 MB of float32


class Products:
    """Memory for one chunk, shared by all products: the stream computes one after the other."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._chunk: Memory | None = None
        self._numbers: dict[tuple[int, int], DeviceArray] = {}  # first row, rows -> int32[rows]

    def takes(self, x: DeviceArray, weight: DeviceWeight) -> bool:
        return x.shape[0] >= LARGE and weight.shape[1] <= CHUNK

    def bytes_missing(self) -> int:
        """What the first product will take for good."""
        return 4 * CHUNK if self._chunk is None else 0

    def launches(self, x: DeviceArray, weight: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
        """y[T, m] = x[T, n] @ weight[m, n].T"""
        if self._chunk is None:
            self._chunk = self._runtime.allocate(4 * CHUNK)
        n_tokens, n = x.shape
        m, most = weight.shape[0], CHUNK // n
        for first in range(0, m, most):
            dense = DeviceArray(self._chunk, (min(most, m - first), n), np.dtype(np.float32))
            yield from TABLE[ops.embedding.name](self._runtime.limits, self._row_numbers(first, dense.shape[0]), weight, dense)
            yield Launch(
                source=CUBLAS,
                kernel="sgemm",
                args=(x.memory, dense.memory, y.memory, n_tokens, n, dense.shape[0], first, m),
                groups=(),
                group_size=1,
                defines={},
            )

    def _row_numbers(self, first: int, n: int) -> DeviceArray:
        """first, first + 1, ...: embedding, asked for these rows, dequantises them."""
        if (numbers := self._numbers.get((first, n))) is None:
            numbers = DeviceArray(self._runtime.allocate(4 * n), (n,), np.dtype(np.int32))
            self._runtime.write(numbers.memory, np.arange(first, first + n, dtype=np.int32))
            self._numbers[first, n] = numbers
        return numbers
