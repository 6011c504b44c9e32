"""Weights in float32: kept where the budget allows, converted anew at every use where not.

BLAS multiplies floats only. Kept in float32 a weight is read at 4 bytes a step, whatever it is quantised to, which is what
makes this backend's decode as fast as memory and no faster. Under a budget too small for all, each weight that does not fit is
converted a few rows at a time: slow, but a 65B model then runs in the memory of its quantised file, shared between processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ops.tensor import Tensor

from ..pages import let_go
from .threads import Threads, slices

CHUNK = 1 << 20  # weights converted at a time: 4 MB of float32
CONVERSION = 9 * CHUNK  # bytes that this takes: float32, the quants as int8, a second float32 of the scales


class Weights:
    def __init__(self, budget: int | None, threads: Threads) -> None:
        self.budget = free_memory() if budget is None else budget  # bytes of float32
        self.kept = 0
        self._threads = threads
        self._dense: WeakKeyDictionary[Tensor, NDArray[np.float32]] = WeakKeyDictionary()
        self._lock = Lock()

    def get(self, tensor: Tensor) -> NDArray[np.float32] | None:
        """float32[m, n], or None if the budget has no room for it."""
        dense = self._dense.get(tensor)
        return dense if dense is not None else self._admit(tensor)

    def _admit(self, tensor: Tensor) -> NDArray[np.float32] | None:
        size = 4 * tensor.n_params
        with self._lock:  # held for the count only: to convert under it could wait for a thread that waits for it
            if tensor in self._dense or self.kept + size > self.budget:
                return self._dense.get(tensor)
            self.kept += size
        try:
            dense = np.empty(tensor.shape, np.float32)

            def convert(rows: slice) -> None:
                dense[rows] = tensor.dequantize(rows)
                # the file's form is not needed beside the float32 one
                let_go(tensor.data[rows] if isinstance(tensor.data, np.ndarray) else tensor.data)

            self._threads.each(convert, chunks(tensor))
        except BaseException:
            with self._lock:
                self.kept -= size
            raise
        with self._lock:
            if tensor in self._dense:  # another thread was first
                self.kept -= size
            return self._dense.setdefault(tensor, dense)

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
    """Bytes that may be used without pressing other programs: 80% of what the system and this container have left."""
    left = [n for n in (_system_left(), _container_left()) if n is not None]
    return min(left) * 8 // 10 if left else 8 << 30


def _system_left() -> int | None:
    """Linux tells what is available; elsewhere half of all memory is taken for that, where it can be asked."""
    try:
        with open("/proc/meminfo", "rb") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"MemAvailable"))
    except (OSError, StopIteration):
        pages = hasattr(os, "sysconf") and os.sysconf_names.get("SC_PHYS_PAGES")
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if pages else None


def _container_left() -> int | None:
    """What a control group (Linux, version 2) leaves to its processes."""
    try:
        limit, used = (int(Path("/sys/fs/cgroup", name).read_bytes()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no control group, or no limit: "max"
        return None
    return max(0, limit - used)
