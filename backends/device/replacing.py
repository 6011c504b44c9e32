"""A file of ours that is replaced as a whole, so that nobody ever reads half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path, started: Path) -> Iterator[None]:
    """The block writes `started`, in the same folder, which then takes the place of `path`. After any error it is gone.

    The block also makes it: Ctrl-C may come as soon as it is there.
    """
    try:
        yield
        os.replace(started, path)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):
            started.unlink()
        raise
