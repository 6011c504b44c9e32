"""Work on several cores: numpy gives up Python's lock inside an array operation, so plain threads run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits


class Threads:
    """`n` threads for array operations, and as many for the BLAS library, which has its own."""

    def __init__(self, n: int, *, limit_blas: bool) -> None:
        self.n = n
        self._pool = ThreadPoolExecutor(n - 1, "tinyllama") if n > 1 else None
        if limit_blas:
            threadpool_limits(n, user_api="blas")

    def each(self, function: Callable[[slice], None], parts: Sequence[slice]) -> None:
        """Call `function` for every part, the calling thread doing its share."""
        left = iter(parts)  # a list's iterator is taken from by one thread at a time

        def work() -> None:
            with np.errstate(all="ignore"):  # an overflow to inf is often right on the way, and told by the result if not
                for part in left:
                    function(part)

        helpers = min(self.n, len(parts)) - 1
        others = [self._pool.submit(work) for _ in range(helpers)] if self._pool else []
        work()
        for other in others:
            other.result()

    def rows(self, function: Callable[[slice], None], n_rows: int, row_bytes: int) -> None:
        """Call `function` for slices of rows, each small enough to stay in a core's cache between array operations."""
        self.each(function, slices(n_rows, max(1, CACHE_BYTES // row_bytes)))


CACHE_BYTES = 256 << 10  # a quarter to an eighth of today's L2: an operation has two or three operands


def slices(n: int, size: int) -> list[slice]:
    """0..n cut into slices of at most `size`."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
