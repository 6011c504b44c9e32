"""Work on several cores: numpy gives up Python's lock inside an array operation, so plain threads run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

CACHE_BYTES = 256 << 10  # of an operand: a quarter to an eighth of today's L2, and an operation has two or three


class Threads:
    """`n` threads for array operations, and as many for the BLAS library, which has its own."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._pool = ThreadPoolExecutor(n - 1, "tinyllama") if n > 1 else None
        self._blas = ThreadpoolController().select(user_api="blas").lib_controllers
        self._set_blas(n)

    def each(self, function: Callable[[slice], None], parts: Sequence[slice]) -> None:
        """Call `function` for every part, on all threads. Products in it run on one thread each: BLAS's own would queue."""
        if self._pool is None or len(parts) < 2:
            for part in parts:
                function(part)
            return
        left = iter(parts)  # a list's iterator is taken from by one thread at a time

        def work() -> None:
            with np.errstate(all="ignore"):  # this setting of the caller does not reach other threads by itself
                for part in left:
                    function(part)

        self._set_blas(1)
        try:
            others = [self._pool.submit(work) for _ in range(min(self.n, len(parts)) - 1)]
            work()
            for other in others:
                other.result()
        finally:
            self._set_blas(self.n)

    def rows(self, function: Callable[[slice], None], n_rows: int, row_bytes: int) -> None:
        """Call `function` for slices of rows, each small enough to stay in a core's cache between array operations."""
        self.each(function, slices(n_rows, max(1, CACHE_BYTES // row_bytes)))

    def _set_blas(self, n: int) -> None:
        for library in self._blas:
            library.set_num_threads(n)


def slices(n: int, size: int) -> list[slice]:
    """0..n cut into slices of at most `size`."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
