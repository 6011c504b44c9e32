"""Mapped files: which file an array is a part of, and pages of it that have been read and will not be read again."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ops.tensor import MadeRows

DONT_NEED: int | None = getattr(mmap, "MADV_DONTNEED", None)  # Windows has no madvise


@dataclass(frozen=True)
class Source:
    """A file as it was when it was mapped."""

    path: str  # absolute, of a link the file that it leads to
    size: int  # bytes
    mtime_ns: int
    inode: int

    @staticmethod
    def of(path: str | os.PathLike[str], status: os.stat_result) -> Source:
        return Source(os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino)

    def is_unchanged(self) -> bool:
        """Is the same file still there, as it was?"""
        try:
            return Source.of(self.path, os.stat(self.path)) == self
        except OSError:
            return False


MAPPED: WeakKeyDictionary[mmap.mmap, Source] = WeakKeyDictionary()  # all files of models that are mapped now


def let_go(data: NDArray[np.uint8] | MadeRows) -> None:
    """Take the pages of an array that lies in a mapped file out of this process's memory; they stay in the system's cache.

    The array may be read again, which brings them back. An array that lies elsewhere is left alone. Of rows that are made:
    all that they are made from.
    """
    if isinstance(data, MadeRows):
        for source in data.sources:
            let_go(source)
        return
    if DONT_NEED is None or not data.nbytes or (place := mapping_of(data)) is None:
        return
    mapping, offset = place
    first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the rest belongs to a neighbour
    last = (offset + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapping.madvise(DONT_NEED, first, last - first)


def mapping_of(data: NDArray[Any]) -> tuple[mmap.mmap, int] | None:
    """The mapping in which an array lies, and at which byte of it the array begins; None if it lies elsewhere."""
    owner: Any = data
    while isinstance(owner, (np.ndarray, memoryview)):  # views of views
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap):
        return None
    return owner, data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
