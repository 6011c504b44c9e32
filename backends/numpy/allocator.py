"""What is freed stays with the process: the next array of a step then finds pages that exist already.

glibc gives large blocks back to the system at once, and asks for them again for the next array; the system hands out every
page zeroed, at a page fault each. In a prefill, where each op makes a few megabytes, that was 12% of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 16 << 20  # bytes of free memory at the top of the heap before it is given back
LARGEST = 32 << 20  # glibc's own upper limit for what may come from the heap


def keep_freed_memory() -> None:
    """Tell the C library's malloc; where it is not glibc's, nothing changes."""
    if (mallopt := _of_libc("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def give_back_freed_memory() -> None:
    """Once, to see what a program takes without it."""
    if (malloc_trim := _of_libc("malloc_trim")) is not None:
        malloc_trim(0)


def _of_libc(function: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):  # no such function; Windows takes no None
        return None
    return found
