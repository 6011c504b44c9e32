"""A file that appears whole or not at all: written beside its place under another name, renamed at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from ops.errors import OptionError

Write = Callable[[Any], object]  # takes bytes or a contiguous array


def check_target(path: Path, sources: list[Path], *, force: bool) -> None:
    """May a file be written there? Asked before any work is done.

    OptionError: its folder is missing, it is no regular file, it is one of the files read, or it is there and `force` is off.
    And a file that is not GGUF is never overwritten: a model's shards, config and vocabulary lie beside each other.
    """
    with _told(path):
        _check(path, sources, force)


def _check(path: Path, sources: list[Path], force: bool) -> None:
    if not path.parent.is_dir():
        raise OptionError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise OptionError(f"cannot write {path}: it is a folder; name a file")
    if not (path.exists() or path.is_symlink()):
        return
    for source in sources:
        with suppress(OSError):  # a source that is not there is another sentence's matter
            if path.samefile(source):
                raise OptionError(f"cannot write {path}: it is the file that is read; name another")
    if path.exists() and not path.is_file():
        raise OptionError(f"cannot write {path}: it is a device, a pipe or the like; name a file")
    if not force:
        raise OptionError(f"{path} exists: name another file, or overwrite it with --force")
    if path.exists() and not _may_be_lost(path):
        raise OptionError(f"cannot write {path}: it is no GGUF file, and only such are overwritten; name another")


def _may_be_lost(path: Path) -> bool:
    """Is it a GGUF file, or an empty one?"""
    with path.open("rb") as file:
        return file.read(4) in (b"GGUF", b"")


@contextmanager
def new_file(path: Path, nbytes: int, *, force: bool = False) -> Iterator[Write]:
    """A function that writes bytes, one after another, `nbytes` in all. After any error nothing is left of them.

    OptionError: `check_target`'s reasons, no room on the disk, or a folder that cannot be written.
    """
    check_target(path, [], force=force)
    path = Path(os.path.realpath(path))  # of a link the file that it leads to
    with suppress(OSError):
        disk = shutil.disk_usage(path.parent)
        if disk.total and disk.free < nbytes:  # a total of 0: no disk, such as /proc, which has a sentence of its own
            raise OptionError(f"cannot write {path}: it takes {nbytes:,} bytes, and its disk has {disk.free:,} free")
    # in the same folder: a rename does not leave a disk
    started = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.partial")
    file: BinaryIO | None = None
    try:  # from before the file is there: Ctrl-C may come as soon as it is
        with _told(path):
            file = started.open("xb")
        yield partial(_write, path, file)
        with _told(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        check_target(path, [], force=force)  # another program may have put a file there meanwhile
        with _told(path):
            os.replace(started, path)
    except BaseException:  # Ctrl-C too
        if file is not None:
            with suppress(OSError):  # closing writes what is buffered, which a full disk refuses once more
                file.close()
        with suppress(OSError):
            started.unlink()
        raise


def _write(path: Path, file: BinaryIO, data: Any) -> None:
    with _told(path):
        file.write(data)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the system refuses, in one sentence."""
    try:
        yield
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or error}; nothing of it was kept") from error
