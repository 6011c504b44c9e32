"""Work on several cores: numpy gives up Python's lock inside an array operation, so plain threads run side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, local
from time import perf_counter, thread_time
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from ..base import usable_cpus

CROWDED = 0.8  # of the time on the clock that a thread computes: on a quiet machine it is all of it
WATCHED = 0.25  # seconds of steps to judge by: some systems count a thread's time in ticks of 16 ms
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds

Result = TypeVar("Result")


class Threads:
    """`n` threads for array operations, and as many for the BLAS library, which has its own.

    BLAS's number of threads is the process's: two models in one process should be given the same.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._pool = ThreadPoolExecutor(n - 1, "tinyllama") if n > 1 else None
        self._of_thread = local()
        self._lock = Lock()
        self._n_together = 0
        self._blas = ThreadpoolController().select(user_api="blas").lib_controllers
        self._set_blas(n)
        self._wall = self._cpu = 0.0
        self._alone_until, self._pause = 0.0, FIRST_PAUSE

    def step(self, run: Callable[[], Result]) -> Result:
        """Run a step whose products use BLAS's threads, or one thread for a while if the machine is crowded.

        BLAS's threads wait for each other in a loop. With a core each that is the fastest way. When another program wants
        a core too, each of a step's 200 products waits for the scheduler, and two such programs slow each other down twenty
        times. This thread then gets less time than the clock shows, which is how we know.
        """
        began, cpu = perf_counter(), thread_time()
        if began < self._alone_until:
            return run()
        self._settle_blas()
        result = run()
        self._wall += perf_counter() - began
        self._cpu += thread_time() - cpu
        if self._wall > WATCHED:
            if self._cpu < CROWDED * self._wall:
                self._alone_until = perf_counter() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                self._set_blas(1)
            else:
                self._pause = FIRST_PAUSE
            self._wall = self._cpu = 0.0
        return result

    def together(self, function: Callable[[int], None], n: int, give_up: Callable[[], None] = lambda: None) -> None:
        """Call function(0) to function(n - 1) at the same time, n at most `self.n`; raises what the first of them raised.

        Matrix products inside run on one thread each: BLAS's own threads would queue for each other. Called from inside
        itself, where all threads are taken, it calls one after the other. `give_up` is called if not all can go on: it has to
        let calls return that wait for others. None is left running when this returns, not even after a second Ctrl-C.
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

        others: list[Future[None]] = []
        self._settle_blas(1)
        try:
            for i in range(1, n):
                others.append(self._pool.submit(work, i))
            work(0)
        except BaseException:
            give_up()
            raise
        finally:
            failures = self._wait(others, give_up)
            self._settle_blas(-1)
        for failure in failures:
            if failure is not None:
                raise failure

    def _wait(self, others: list[Future[None]], give_up: Callable[[], None]) -> list[BaseException | None]:
        interrupt: list[BaseException | None] = []
        while True:
            try:
                return [*interrupt, *(other.exception() for other in others)]
            except KeyboardInterrupt as error:
                interrupt = [error]
                give_up()

    def _settle_blas(self, began: int = 0) -> None:
        """One thread for BLAS while anyone works together, in whichever context, or the machine is crowded; else all.

        began: 1 if a `together` begins, -1 if one ends.
        """
        with self._lock:
            self._n_together += began
            alone = self._n_together > 0 or perf_counter() < self._alone_until
            self._set_blas(1 if alone else self.n)

    def each(self, function: Callable[[slice], None], parts: list[slice]) -> None:
        """Call `function` for every part, on all threads."""
        left = iter(parts)  # a list's iterator is taken from by one thread at a time

        def work(_: int) -> None:
            for part in left:
                function(part)

        self.together(work, min(self.n, len(parts)))

    def _set_blas(self, n: int) -> None:
        for library in self._blas:  # more threads than cores would wait for each other's
            library.set_num_threads(min(n, usable_cpus()))


def slices(n: int, size: int) -> list[slice]:
    """0..n cut into slices of at most `size`."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
