"""What this process takes of the machine's memory."""

from __future__ import annotations

import sys


def peak_resident() -> int | None:
    """Bytes resident at most so far, pages of mapped files included; None where the system does not tell.

    Linux: VmHWM, since ru_maxrss begins with what the parent process had (getrusage(2) keeps it over an exec).
    """
    try:
        with open("/proc/self/status", "rb") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(b"VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
