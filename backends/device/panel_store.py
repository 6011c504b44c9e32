"""Repacked weights kept on disk and mapped, so that a second start repacks nothing and reads only what it touches.

    folder/
        smollm2-135m-9f86d081884c-2c26b46b68ff/     a model's file: its name, hashes of its path and of what it was
            1769472.Q4_1.576x1536.0+36              a tensor: its offset in the file, format, shape, first panel + panels
            ...

A file here begins with a header that names all that its panels depend on, then come the panels as `panels.py` lays them out.
It is used if its header is, byte by byte, the one expected and its size is right, and otherwise written anew. A file appears
whole or not at all: it is written under another name, and renamed when it is on the disk. So two processes may write the same
one: both write the same bytes, and the last name stays.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ops.blocks import FORMATS
from ops.tensor import Tensor

from ..pages import MAPPED, Source, mapping_of
from .panels import LAYOUTS, ROWS, Bytes, pack, panel_bytes

MARGIN = 1 << 30  # bytes that stay free on the disk, at least
ALIGNMENT = 4096  # of the panels in their file: more than any instruction asks
PARTIAL = ".partial-"  # prefix of what is being written
ABANDONED = 24 * 3600  # seconds after which that belongs to a process that was killed


@dataclass(frozen=True)
class Key:
    """What panels are of."""

    source: Source
    offset: int  # of the tensor in the source
    format: str
    shape: tuple[int, ...]
    first_panel: int
    n_panels: int

    @staticmethod
    def of(tensor: Tensor, first_panel: int, n_panels: int) -> Key | None:
        """None for what is no stretch of a model's file: rows that are made, a copy in memory."""
        data = tensor.data
        if not isinstance(data, np.ndarray) or not data.flags.c_contiguous or (place := mapping_of(data)) is None:
            return None
        mapping, offset = place
        if (source := MAPPED.get(mapping)) is None:
            return None
        return Key(source, offset, tensor.format.name, tensor.shape, first_panel, n_panels)

    @property
    def of_path(self) -> str:
        """What the folders of the same path begin with, whatever the file was when it was mapped."""
        return f"{Path(self.source.path).stem[:40]}-{_hash(self.source.path)}-"

    @property
    def folder(self) -> str:
        return self.of_path + _hash(self.source)

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.offset}.{self.format}.{shape}.{self.first_panel}+{self.n_panels}"

    @property
    def header(self) -> bytes:
        text = ascii(("panels", layout_mark(self.format), sys.byteorder, self)).encode() + b"\n"
        return text.ljust(-(-len(text) // ALIGNMENT) * ALIGNMENT, b"\0")

    @property
    def row_bytes(self) -> int:
        return panel_bytes(LAYOUTS[self.format], self.shape[1])


class PanelStore:
    """A folder of panels; without a folder nothing is found and nothing kept. Used by several threads and processes."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def find(self, tensor: Tensor, first_panel: int, n_panels: int) -> Bytes | None:
        """uint8[n_panels, panel_bytes], read-only and mapped, of a tensor that has a layout; None if they are not kept."""
        key = Key.of(tensor, first_panel, n_panels)
        return _mapped(self.folder / key.folder / key.name, key) if self.folder and key else None

    def keep(self, tensor: Tensor, first_panel: int, data: Bytes) -> Bytes:
        """The same panels, C-contiguous, as `find` will give them; or `data` itself where they cannot be kept.

        They are not, without a word, where the disk has too little room or is not to be written, and if the model's file has
        changed since it was mapped.
        """
        key = Key.of(tensor, first_panel, len(data))
        if not (self.folder and key and key.source.is_unchanged() and _may_map()):
            return data
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            _tidy(self.folder, key)
            # as much as the model's file again, for whatever else the disk is for
            if shutil.disk_usage(self.folder).free - data.nbytes >= max(key.source.size, MARGIN):
                _write(self.folder, key, data)
        kept = _mapped(self.folder / key.folder / key.name, key)
        return data if kept is None else kept


@lru_cache
def layout_mark(format: str) -> str:
    """What tells a format's layout from an earlier one: some weights, packed and hashed. So there is no number to forget."""
    layout = LAYOUTS[format]
    n, n_rows = 2 * layout.columns, ROWS + 1  # two blocks of two panels
    row_bytes = FORMATS[format].row_bytes(n)
    raw = np.frombuffer(hashlib.shake_128(b"weights").digest(n_rows * row_bytes), np.uint8)
    return hashlib.sha256(pack(layout, raw.reshape(n_rows, row_bytes), n).data).hexdigest()[:12]


def _hash(what: object) -> str:
    return hashlib.sha256(ascii(what).encode()).hexdigest()[:12]


def _mapped(path: Path, key: Key) -> Bytes | None:
    """The panels of a file that is whole and has this key."""
    header = key.header
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != len(header) + key.n_panels * key.row_bytes or not _may_map(file.fileno()):
                return None
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # keeps a descriptor of its own
    except (OSError, ValueError):  # ValueError: it has become empty
        return None
    if mapping[: len(header)] != header:
        return None
    return np.frombuffer(mapping, np.uint8, offset=len(header)).reshape(key.n_panels, key.row_bytes)


def _may_map(descriptor: int | None = None) -> bool:
    """Half of the files that this process may have open, no more: a model of very many tensors must leave some to others."""
    if sys.platform == "win32":
        return True
    import resource

    if descriptor is None:  # the next one
        descriptor = os.open(os.curdir, os.O_RDONLY)
        os.close(descriptor)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft == resource.RLIM_INFINITY or descriptor <= soft // 2


def _tidy(folder: Path, key: Key) -> None:
    """Remove what was kept of this path while another file was there, and what killed processes left."""
    for entry in folder.iterdir():
        if entry.name.startswith(key.of_path) and entry.name != key.folder:
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.startswith(PARTIAL):
            with suppress(FileNotFoundError):  # its writer has just renamed it
                if time.time() - entry.stat().st_mtime > ABANDONED:
                    entry.unlink()


def _write(folder: Path, key: Key, data: Bytes) -> None:
    started = folder / f"{PARTIAL}{secrets.token_hex(8)}"
    try:  # from before the file is there: Ctrl-C may come as soon as it is
        with started.open("xb") as file:
            file.write(key.header)
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())  # a new name must not outlive a loss of power that its bytes do not
        of_source = folder / key.folder
        of_source.mkdir(exist_ok=True)
        os.replace(started, of_source / key.name)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):
            started.unlink()
        raise
