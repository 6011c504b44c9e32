"""Readers of model files, one file a format; every one gives a ModelFile."""

from __future__ import annotations

import stat
from pathlib import Path

from ops.errors import FormatError

from .gguf import read_gguf
from .model_file import ModelFile

READERS = {b"GGUF": read_gguf}  # by a file's first bytes

__all__ = ["ModelFile", "open_model_file", "read_gguf"]


def open_model_file(path: Path, *, mmap: bool = True) -> ModelFile:
    """Open a model file of any format that is read here; its first bytes tell which.

    mmap: tensors are views of the mapped file, read when touched; otherwise the file is read into memory at once.
    Raises FormatError if the file is missing, unreadable, damaged or no model.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FormatError(f"{path}: this is a directory; name a model file in it")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
            raise FormatError(f"{path}: this is not a regular file; a model has to be a file on disk")
        with path.open("rb") as file:
            start = file.read(16)
        if not start:
            raise FormatError(f"{path}: the file is empty; download it again")
        for magic, read in READERS.items():
            if start.startswith(magic):
                return read(path, mmap=mmap)
    except FileNotFoundError:
        raise FormatError(f"{path}: there is no such file") from None
    except PermissionError:
        raise FormatError(f"{path}: no permission to read this file; change its permissions or its owner") from None
    except OSError as error:
        raise FormatError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    raise FormatError(f"{path}: this is not a model file: only GGUF files are read, which begin with the letters GGUF")
