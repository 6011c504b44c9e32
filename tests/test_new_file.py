"""A new file is there whole or not at all, wherever Ctrl-C comes."""

from __future__ import annotations

import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from ctrl_c import interrupted_at

from ops.errors import OptionError
from tinyllama.formats import new_file as module


def write(path: Path) -> None:
    with module.new_file(path, 3) as file:
        file(b"abc")


def test_ctrl_c_before_every_line(tmp_path: Path) -> None:
    whole = 0
    for n in count():
        folder = tmp_path / str(n)
        folder.mkdir()
        came = interrupted_at(n, module, partial(write, folder / "out"))
        held = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert held in ({}, {"out": b"abc"}), f"Ctrl-C before line {n}"
        whole += bool(held)
        if not came:
            break
    assert n > 20  # the lines are really seen
    assert 0 < whole < n  # some came before the file's renaming, some after it


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_what_is_no_disk_is_not_called_full() -> None:
    told = pytest.raises(OptionError, match=r"cannot write /proc/out: .*nothing of it was kept")
    with told, module.new_file(Path("/proc/out"), 3):
        pass


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot write .*xxx: File name too long"):
        module.check_target(tmp_path / ("x" * 300), [], force=False)
