"""Work on several cores: numpy gives up Python's lock inside an array operation, so plain threads run side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import local

import numpy as np
from threadpoolctl import ThreadpoolController


class Threads:
    """`n` threads for array operations, and as many for the BLAS library, which has its own."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._pool = ThreadPoolExecutor(n - 1, "tinyllama") if n > 1 else None
        self._of_thread = local()
        self._blas = ThreadpoolController().select(user_api="blas").lib_controllers
        self._set_blas(n)

    def together(self, function: Callable[[int], None], n: int) -> None:
        """Call function(0) to function(n - 1) at the same time, n at most `self.n`; raises what the first of them raised.

        Matrix products inside run on one thread each: BLAS's own threads would queue for each other. Called from inside
        itself, where all threads are taken, it calls one after the other.
        """
        if self._pool is None or n == 1 or getattr(self._of_thread, "is_taken", False):
            for i in range(n):
                function(i)
            return

        def work(i: int) -> None:
            self._of_thread.is_taken = True
            try:
                with np.errstate(all="ignore"):  # this setting of the caller does not reach other threads by itself
                    function(i)
            finally:
                self._of_thread.is_taken = False

        self._set_blas(1)
        others = [self._pool.submit(work, i) for i in range(1, n)]
        try:
            work(0)
        finally:
            failures = [other.exception() for other in others]  # waits for each
            self._set_blas(self.n)
        for failure in failures:
            if failure is not None:
                raise failure

    def each(self, function: Callable[[slice], None], parts: Iterable[slice]) -> None:
        """Call `function` for every part, on all threads."""
        left = iter(list(parts))  # a list's iterator is taken from by one thread at a time

        def work(_: int) -> None:
            for part in left:
                function(part)

        self.together(work, self.n)

    def _set_blas(self, n: int) -> None:
        for library in self._blas:
            library.set_num_threads(n)


def slices(n: int, size: int) -> list[slice]:
    """0..n cut into slices of at most `size`."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
