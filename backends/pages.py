"""Pages of a mapped file that have been read and will not be read again."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.tensor import MadeRows

DONT_NEED: int | None = getattr(mmap, "MADV_DONTNEED", None)  # Windows has no madvise


def let_go(data: NDArray[np.uint8] | MadeRows) -> None:
    """Take the pages of an array that lies in a mapped file out of this process's memory; they stay in the system's cache.

    The array may be read again, which brings them back. An array that lies elsewhere is left alone. Of rows that are made:
    all that they are made from.
    """
    if isinstance(data, MadeRows):
        for source in data.sources:
            let_go(source)
        return
    owner: Any = data
    while isinstance(owner, (np.ndarray, memoryview)):  # views of views
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if DONT_NEED is None or not isinstance(owner, mmap.mmap) or not data.nbytes:
        return
    offset = data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the rest belongs to a neighbour
    last = (offset + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        owner.madvise(DONT_NEED, first, last - first)
