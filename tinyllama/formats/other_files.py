"""The other files of a model in several files: is one there, and if it is no file, what is it?"""

from __future__ import annotations

import stat
from errno import ELOOP
from pathlib import Path

from ops.errors import FormatError

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def is_there(path: Path) -> bool:
    """Whether this file is there. It is not opened: opening a pipe would wait for a writer.

    FormatError: there is something of that name, but no file; other OSErrors than that there is nothing are the caller's.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)) and error.errno != ELOOP:
            raise
        if not path.is_symlink():
            return False
        raise FormatError(f"{path}: this is a link that leads to no file; put the model's file there") from None
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "a device")
        raise FormatError(f"{path}: this is {kind}, not a file; put the model's file there")
    return True
