"""Weights in float32: kept where the budget allows, converted anew at every use where not.

BLAS multiplies floats only. Kept in float32 a weight is read at 4 bytes a step, whatever it is quantised to, which is what
makes this backend's decode as fast as memory and no faster. Under a budget too small for all, each weight that does not fit is
converted a few rows at a time: slow, but a 65B model then runs in the memory of its quantised file, shared between processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.tensor import Tensor

from .threads import Threads, slices

CHUNK = 1 << 20  # weights converted at a time: 4 MB of float32


class Weights:
    def __init__(self, budget: int | None, threads: Threads) -> None:
        self.budget = free_memory() if budget is None else budget  # bytes of float32
        self.kept = 0
        self._threads = threads
        self._dense: dict[Tensor, NDArray[np.float32]] = {}
        self._lock = Lock()

    def get(self, tensor: Tensor) -> NDArray[np.float32] | None:
        """float32[m, n], or None if the budget has no room for it."""
        dense = self._dense.get(tensor)
        return dense if dense is not None else self._admit(tensor)

    def _admit(self, tensor: Tensor) -> NDArray[np.float32] | None:
        size = 4 * tensor.n_params
        with self._lock:
            if tensor in self._dense or self.kept + size > self.budget:
                return self._dense.get(tensor)
            dense = np.empty(tensor.shape, np.float32)

            def convert(rows: slice) -> None:
                dense[rows] = tensor.dequantize(rows)

            self._threads.each(convert, chunks(tensor))
            self._dense[tensor] = dense
            self.kept += size
        return dense

    def multiply(self, x: NDArray[np.float32], tensor: Tensor) -> NDArray[np.float32]:
        """x @ tensor.T for a weight that is not kept."""
        y = np.empty((len(x), tensor.shape[0]), np.float32)

        def product(rows: slice) -> None:
            y[:, rows] = x @ tensor.dequantize(rows).T

        self._threads.each(product, chunks(tensor))
        return y

    def warm_up(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.get(tensor)


def chunks(tensor: Tensor) -> list[slice]:
    return slices(tensor.shape[0], max(1, CHUNK // tensor.shape[-1]))


def free_memory() -> int:
    """Bytes that may be used without pressing other programs: 80% of what the system calls available."""
    try:
        with open("/proc/meminfo") as lines:
            fields: dict[str, Any] = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024 * 8 // 10
    except (OSError, KeyError):  # not Linux: half of all memory, if that can be asked
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        return 8 << 30
