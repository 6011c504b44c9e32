"""Amounts of memory: what this process takes, and how an amount is told."""

from __future__ import annotations

import sys


def peak_resident() -> int | None:
    """Bytes resident at most so far, pages of mapped files included; None where the system does not tell.

    Linux: VmHWM, since ru_maxrss begins with what the parent process had (getrusage(2) keeps it over an exec).
    """
    if (told := _of_status(b"VmHWM")) is not None:
        return told
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident() -> int | None:
    """Bytes resident now; where the system does not tell that, at most so far."""
    return _of_status(b"VmRSS") or peak_resident()


def _of_status(field: bytes) -> int | None:
    """Linux's account of this process, proc(5)."""
    try:
        with open("/proc/self/status", "rb") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def mib(n: float) -> str:
    """Bytes for a person: in MiB; in KiB below one, in GiB from ten of them."""
    if n < 2**20:
        return f"{n / 2**10:.1f} KiB"
    return f"{n / 2**20:.1f} MiB" if n < 10 * 2**30 else f"{n / 2**30:.2f} GiB"
