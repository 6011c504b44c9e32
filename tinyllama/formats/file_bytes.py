"""The bytes of a file: mapped, so that what is not touched is not read, or read into memory at once."""

from __future__ import annotations

import mmap as memory_map
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.pages import DONT_NEED, MAPPED, Source
from ops.errors import FormatError

Check = Callable[[], None]  # raises FormatError if the file has shrunk since


def file_bytes(path: Path, *, mmap: bool) -> tuple[NDArray[np.uint8], Check]:
    """All bytes of a file, read-only, and the check that they are all still there.

    FormatError: the file is empty or does not fit into memory; OSError if it cannot be opened.
    """
    return _map(path) if mmap else (_read(path), nothing_to_check)


def nothing_to_check() -> None:
    """A copy in memory cannot shrink."""


def let_go_of_pages() -> None:
    """Take what was read of mapped files out of this process's memory; it stays in the system's cache.

    For work that reads a file once. What is read again comes back, so other readers of the files only lose a little time.
    """
    if DONT_NEED is not None:
        for mapping in list(MAPPED):
            mapping.madvise(DONT_NEED)


def _map(path: Path) -> tuple[NDArray[np.uint8], Check]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            raise FormatError(f"{path}: the file is empty; download it again")
        mapping = memory_map.mmap(file.fileno(), 0, access=memory_map.ACCESS_READ)  # keeps a descriptor of its own
    MAPPED[mapping] = Source.of(path, status)

    def check() -> None:
        if mapping.size() < len(mapping):  # size() asks the system, len() remembers
            raise FormatError(
                f"{path}: the file has shrunk from {len(mapping)} to {mapping.size()} bytes while in use; "
                "leave a model's file alone while it runs, or open it with mmap off"
            )

    return np.frombuffer(mapping, np.uint8), check


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, np.uint8)
    except MemoryError:
        size = path.stat().st_size
        raise FormatError(f"{path}: {size} bytes do not fit into memory; open the file with mmap on") from None
    if not len(data):
        raise FormatError(f"{path}: the file is empty; download it again")
    data.flags.writeable = False
    return data
