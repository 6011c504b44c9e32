"""Wrong in the cache of keys and values: which rows are written, which are seen, how they are rounded."""

from __future__ import annotations

import numpy as np

import ops
from backends.base import kernel
from backends.numpy import Numpy

from .mutant import wrong


@wrong("kv_write")
class WritesOneRowLate(Numpy):
    """Keys go to the row after their position, if there is one."""

    @kernel(ops.kv_write)
    def kv_write(self, cache, x, positions):
        start = min(int(positions[0]) + 1, len(cache) - len(x))
        cache[start : start + len(x)] = x
        return cache[: int(positions[-1]) + 1]


@wrong("kv_write")
class WritesARowMore(Numpy):
    """The row after the last is cleared."""

    @kernel(ops.kv_write)
    def kv_write(self, cache, x, positions):
        seen = super().kv_write(cache, x, positions)
        cache[len(seen) : len(seen) + 1] = 0
        return seen


@wrong("kv_write")
class StaleSlot(Numpy):
    """A prompt's last row is not written when the number of rows is odd: what lay there is seen."""

    @kernel(ops.kv_write)
    def kv_write(self, cache, x, positions):
        n = len(x) - 1 if len(x) % 2 and len(x) > 1 else len(x)
        start = int(positions[0])
        cache[start : start + n] = x[:n]
        return cache[: int(positions[-1]) + 1]


@wrong("kv_write")
class CacheWrittenInHalf(Numpy):
    """Rounded to float16 though the cache is float32."""

    @kernel(ops.kv_write)
    def kv_write(self, cache, x, positions):
        return super().kv_write(cache, x.astype(np.float16), positions)


@wrong("kv_write", dtype="f16")
class HalfIsCutOff(Numpy):
    """A float16 cache gets the bits that fit, not the nearest number."""

    @kernel(ops.kv_write)
    def kv_write(self, cache, x, positions):
        if cache.dtype == np.float16:
            x = (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return super().kv_write(cache, x, positions)


@wrong("kv_write")
class ShowsTheWholeCache(Numpy):
    """What is seen includes the places that are still empty."""

    @kernel(ops.kv_write)
    def kv_write(self, cache, x, positions):
        super().kv_write(cache, x, positions)
        return cache
