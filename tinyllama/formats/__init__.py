"""Readers of model files and folders, one file a format; every one gives a ModelFile."""

from __future__ import annotations

import stat
from pathlib import Path

from ops.errors import FormatError

from .ggml import read_ggml
from .gguf import read_gguf
from .huggingface import read_huggingface
from .llama2c import is_headless, read_llama2c
from .meta import read_meta
from .model_file import ModelFile
from .other_files import is_there

__all__ = ["ModelFile", "open_model_file"]

BY_MAGIC = {  # a file's first bytes
    b"GGUF": read_gguf,
    b"lmgg": read_ggml,  # 0x67676d6c, the letters "ggml" read as a little-endian number; and so on
    b"fmgg": read_ggml,
    b"tjgg": read_ggml,
    b"24ka": read_llama2c,  # "ak42"
}
BY_MARKER = {  # a file that a folder of that kind holds
    "config.json": read_huggingface,
    "params.json": read_meta,
}
OF_A_FOLDER = (".safetensors", ".pth", ".json", ".model")  # a file of these kinds is a part of a folder's model
KNOWN = (
    "GGUF, the .bin files of llama.cpp before it (ggjt, ggmf, ggml), llama2.c's .bin, and the folders of Hugging Face "
    "(config.json with safetensors) and Meta (params.json with consolidated.*.pth)"
)


def open_model_file(path: Path, *, mmap: bool = True) -> ModelFile:
    """Open a model of any format that is read here: a file, whose first bytes tell which, or a folder.

    mmap: tensors are views of the mapped file, read when touched; otherwise the file is read into memory at once.
    Raises FormatError if it is missing, unreadable, damaged or no model.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder(path, mmap)
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
            raise FormatError(f"{path}: this is not a regular file; a model has to be a file on disk")
        with path.open("rb") as file:
            start = file.read(28)
        if not start:
            raise FormatError(f"{path}: the file is empty; download it again")
        for magic, read in BY_MAGIC.items():
            if start.startswith(magic):
                return read(path, mmap=mmap)
        if path.suffix in OF_A_FOLDER and any((path.parent / marker).is_file() for marker in BY_MARKER):
            return _folder(path.parent, mmap)
        if is_headless(path, start):
            return read_llama2c(path, mmap=mmap)
    except FileNotFoundError as error:
        raise FormatError(f"{error.filename or path}: there is no such file") from None
    except PermissionError as error:
        raise FormatError(
            f"{error.filename or path}: no permission to read this file; change its permissions or its owner"
        ) from None
    except OSError as error:
        raise FormatError(f"{path}: the file cannot be read: {error.strerror or error}") from None
    raise FormatError(f"{path}: this is not a model file; known are {KNOWN}")


def _folder(path: Path, mmap: bool) -> ModelFile:
    for marker, read in BY_MARKER.items():
        if is_there(path / marker):
            return read(path, mmap=mmap)
    raise FormatError(
        f"{path}: this folder holds neither config.json (Hugging Face) nor params.json (Meta); name a model file in it"
    )
