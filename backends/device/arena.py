"""Memory for many arrays in few large pieces, which Linux gives in large pages."""

from __future__ import annotations

from math import prod

import numpy as np

from .panels import Bytes

PIECE = 1 << 25  # bytes. Numpy asks for large pages, of 2 MiB, from 4 MiB on; what is not used of a piece takes no memory
ALIGNMENT = 64  # a line of the cache


class Arena:
    """Arrays for as long as a model lives: a piece is given back when none of its arrays is left."""

    def __init__(self) -> None:
        self._rest: Bytes = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...]) -> Bytes:
        """uint8[shape] of undefined content."""
        size = prod(shape)
        if size + ALIGNMENT > len(self._rest):
            self._rest = np.empty(max(PIECE, size + ALIGNMENT), np.uint8)
        start = -self._rest.ctypes.data % ALIGNMENT
        taken = self._rest[start : start + size]
        self._rest = self._rest[start + size :]
        return taken.reshape(shape)
