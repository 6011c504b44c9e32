"""Repacked weights kept on disk and mapped, so that a second start repacks nothing and reads only what it touches.

    folder/
        smollm2-135m-9f86d081884c-2c26b46b68ff      of a model's file: its name, hashes of its path and of what it was

        | contents: a line of JSON | panels of a tensor | panels of another | ...      each from a multiple of 4096 bytes on

The contents name the model's file, and all that the panels depend on. They are used if the file is as long as they tell. A
file appears whole or not at all: it is written under another name, and renamed when it is on the disk. So two processes may
write the same one: both write the same bytes, or one has more of them, and the last name stays.

All tensors lie in one file, since a processor finds its way through large pages faster than through many of 4 KiB, and Linux
makes them of one large file, not of two hundred small ones. With 2 MiB a page two cores read 60 GB/s instead of 46 (Zen 4).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import shutil
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from ops.blocks import FORMATS
from ops.tensor import Tensor

from ..pages import MAPPED, Source, mapping_of
from .panels import LAYOUTS, ROWS, Bytes, pack, panel_bytes
from .replacing import replacing

MARGIN = 1 << 30  # bytes that stay free on the disk, at least
ALIGNMENT = 4096  # of the panels in their file: more than any instruction asks
PARTIAL = ".partial-"  # prefix of what is being written
PIECE = 1 << 21  # bytes that are written at a time: of what is written in large pieces Linux makes large pages
ABANDONED = 24 * 3600  # seconds after which that belongs to a process that was killed

Panels = dict[str, Bytes]  # by the name of what they are of


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
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.offset}.{self.format}.{shape}.{self.first_panel}+{self.n_panels}.{layout_mark(self.format)}"

    @property
    def panels_shape(self) -> tuple[int, int]:
        return self.n_panels, panel_bytes(LAYOUTS[self.format], self.shape[1])


class PanelStore:
    """A folder of panels; without a folder nothing is found and nothing kept. Used by several threads and processes."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._lock = Lock()
        self._mapped: dict[Source, Panels] = {}
        self._waiting: dict[Source, Panels] = defaultdict(dict)

    def find(self, tensor: Tensor, first_panel: int, n_panels: int) -> Bytes | None:
        """uint8[n_panels, panel_bytes], read-only and mapped, of a tensor that has a layout; None if they are not kept."""
        key = Key.of(tensor, first_panel, n_panels)
        if not (self.folder and key):
            return None
        with self._lock:
            found = self._of(key.source).get(key.name)
            return found.reshape(key.panels_shape) if found is not None and found.size == np.prod(key.panels_shape) else None

    def add(self, tensor: Tensor, first_panel: int, data: Bytes) -> None:
        """These panels, C-contiguous, are to be kept: by `write`, until which they must not change."""
        key = Key.of(tensor, first_panel, len(data))
        if self.folder and key:
            with self._lock:
                self._waiting[key.source][key.name] = data.reshape(-1)

    def write(self) -> None:
        """Keep what has been added, with what was kept of the same model's file before.

        It is not, without a word, where the disk has too little room or is not to be written, and if the model's file has
        changed since it was mapped.
        """
        with self._lock:
            while self._waiting:
                source, added = self._waiting.popitem()
                with suppress(OSError):
                    self._write(source, self._of(source) | added)
                self._mapped.pop(source, None)  # a new file may be there

    def _of(self, source: Source) -> Panels:
        """All that is kept of a model's file."""
        assert self.folder
        if source not in self._mapped:
            self._mapped[source] = _read(self.folder / _name(source), source)
        return self._mapped[source]

    def _write(self, source: Source, panels: Panels) -> None:
        assert self.folder
        if not source.is_unchanged():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _tidy(self.folder, source)
        # as much as the model's file again, for whatever else the disk is for
        n_bytes = sum(data.nbytes for data in panels.values())
        if shutil.disk_usage(self.folder).free - n_bytes >= max(source.size, MARGIN):
            _write(self.folder, _name(source), _contents(source, panels), list(panels.values()))


@lru_cache
def layout_mark(format: str) -> str:
    """What tells a format's layout from an earlier one: some weights, packed and hashed. So there is no number to forget."""
    layout = LAYOUTS[format]
    n, n_rows = 2 * layout.columns, ROWS + 1  # two blocks of two panels
    row_bytes = FORMATS[format].row_bytes(n)
    raw = np.frombuffer(hashlib.shake_128(b"weights").digest(n_rows * row_bytes), np.uint8)
    return hashlib.sha256(pack(layout, raw.reshape(n_rows, row_bytes), n).data).hexdigest()[:12]


def _of_path(source: Source) -> str:
    """What the names of the same path begin with, whatever the file was when it was mapped."""
    return f"{Path(source.path).stem[:40]}-{_hash(source.path)}-"


def _name(source: Source) -> str:
    return _of_path(source) + _hash(source)


def _hash(what: object) -> str:
    return hashlib.sha256(ascii(what).encode()).hexdigest()[:12]


def _contents(source: Source, panels: Panels) -> bytes:
    """The file's first line, with the bytes of each tensor in their order."""
    told = {"of": ascii(source), "byteorder": sys.byteorder, "panels": {name: data.nbytes for name, data in panels.items()}}
    return json.dumps(told).encode() + b"\n"


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT


def _read(path: Path, source: Source) -> Panels:
    """The panels of a file that is whole and of this model's file; of layouts as they are now."""
    try:
        with path.open("rb") as file:
            line = file.readline()
            told = json.loads(line)
            if (told["of"], told["byteorder"]) != (ascii(source), sys.byteorder):
                return {}
            at, places = _aligned(len(line)), {}
            for name, n_bytes in told["panels"].items():
                places[name] = slice(at, at + n_bytes)
                at += _aligned(n_bytes)
            if os.fstat(file.fileno()).st_size != at:
                return {}
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # keeps a descriptor of its own
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or not ours
        return {}
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    whole, marks = np.frombuffer(mapping, np.uint8), {layout_mark(name) for name in LAYOUTS}
    return {name: whole[place] for name, place in places.items() if name.rpartition(".")[2] in marks}


def _in_pieces(file: BinaryIO, data: memoryview) -> None:
    """Write so that the buffer is full at each multiple of PIECE, and goes to the file as a whole."""
    while data:
        n = PIECE - file.tell() % PIECE
        file.write(data[:n])
        data = data[n:]


def _tidy(folder: Path, source: Source) -> None:
    """Remove what was kept of this path while another file was there, and what killed processes left."""
    for entry in folder.iterdir():
        is_of_now = entry.name == _name(source) and entry.is_file()
        if entry.name.startswith(_of_path(source)) and not is_of_now:
            if entry.is_dir():  # as an earlier version had them
                shutil.rmtree(entry)
            else:
                entry.unlink()
        elif entry.name.startswith(PARTIAL):
            with suppress(FileNotFoundError):  # its writer has just renamed it
                if time.time() - entry.stat().st_mtime > ABANDONED:
                    entry.unlink()


def _write(folder: Path, name: str, contents: bytes, panels: list[Bytes]) -> None:
    started = folder / f"{PARTIAL}{secrets.token_hex(8)}"
    with replacing(folder / name, started), started.open("xb", buffering=PIECE) as file:
        for data in (memoryview(contents), *(data.data for data in panels)):
            _in_pieces(file, data)
            _in_pieces(file, memoryview(bytes(-len(data) % ALIGNMENT)))
        file.flush()
        os.fsync(file.fileno())  # a new name must not outlive a loss of power that its bytes do not
