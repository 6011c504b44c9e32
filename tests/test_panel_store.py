"""Repacked weights on disk: what is found again is what was packed, and what could be anything else is not found."""

from __future__ import annotations

import errno
import io
import mmap
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from ctrl_c import interrupted_at

from backends.base import Options
from backends.conformance.blocks import weight
from backends.device import panel_store as module
from backends.device.panel_store import MARGIN, PARTIAL, Key, PanelStore, layout_mark
from backends.device.panels import LAYOUTS, pack
from backends.numpy import Numpy
from backends.pages import mapping_of
from ops.tensor import MadeRows, Tensor
from tinyllama import Model
from tinyllama.fetch import cache_folder
from tinyllama.formats.gguf import read_gguf

M, N = 100, 512  # seven panels, the last of them not full
TINY = Path(__file__).parent / "data/tiny/llama-mha.gguf"


def model_file(path: Path, *formats: str, seed: int = 0) -> Path:
    """A GGUF file with a weight w0, w1 ... [M, N] in each of these formats."""
    writer = gguf.GGUFWriter(path, "llama")
    for i, name in enumerate(formats):
        drawn = weight(np.random.default_rng(seed), "w", (M, N), name, "usual")
        writer.add_tensor(f"w{i}", drawn.data, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def first_tensor(path: Path, *, mmap: bool = True) -> Tensor:
    return read_gguf(path, mmap=mmap).tensors["w0"]


def packed(tensor: Tensor) -> np.ndarray:
    return pack(LAYOUTS[tensor.format.name], np.array(tensor.data), N)


def found(store: PanelStore, tensor: Tensor) -> np.ndarray | None:
    return store.find(tensor, 0, 7)


def keep(store: PanelStore, tensor: Tensor, data: np.ndarray, first: int = 0) -> bool:
    """Is it found afterwards?"""
    store.add(tensor, first, data)
    store.write()
    return store.find(tensor, first, len(data)) is not None


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


@pytest.fixture
def tensor(tmp_path: Path) -> Tensor:
    return first_tensor(model_file(tmp_path / "model.gguf", "Q4_1"))


@pytest.fixture
def store(tmp_path: Path) -> PanelStore:
    return PanelStore(tmp_path / "cache" / "panels")


def test_every_format_is_found_as_it_was_packed(tmp_path: Path, store: PanelStore) -> None:
    path = model_file(tmp_path / "model.gguf", *LAYOUTS)
    for tensor in read_gguf(path).tensors.values():
        assert found(store, tensor) is None
        store.add(tensor, 0, packed(tensor))
        assert found(store, tensor) is None
    store.write()
    for tensor in read_gguf(path).tensors.values():
        again = found(PanelStore(store.folder), tensor)
        np.testing.assert_array_equal(again, packed(tensor))
        assert mapping_of(again) is not None
        assert not again.flags.writeable
        assert again.ctypes.data % 64 == 0  # the widest load of a kernel
    assert [path.name[:6] for path in files(store.folder)] == ["model-"]


def test_parts_of_a_tensor(tensor: Tensor, store: PanelStore) -> None:
    data = packed(tensor)
    for first, n in ((0, 4), (4, 3)):
        assert keep(store, tensor, data[first : first + n], first)
    np.testing.assert_array_equal(store.find(tensor, 4, 3), data[4:])
    np.testing.assert_array_equal(store.find(tensor, 0, 4), data[:4])
    assert found(store, tensor) is None
    assert store.find(tensor, 4, 2) is None
    assert len(files(store.folder)) == 1


def test_what_is_added_later_joins_the_rest(tmp_path: Path, store: PanelStore) -> None:
    """By the same process, or by one that needed other tensors."""
    path = model_file(tmp_path / "model.gguf", "Q4_0", "Q8_0", "Q6_K")
    for i, writer in enumerate((store, store, PanelStore(store.folder))):
        tensor = read_gguf(path).tensors[f"w{i}"]
        assert keep(writer, tensor, packed(tensor))
        assert len(files(store.folder)) == 1
    for tensor in read_gguf(path).tensors.values():
        np.testing.assert_array_equal(found(PanelStore(store.folder), tensor), packed(tensor))


def test_nothing_is_written_twice(tensor: Tensor, store: PanelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep(store, tensor, packed(tensor))
    monkeypatch.setattr(module, "_write", None)
    store.write()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="madvise knows no large pages on this system")
def test_pieces_end_where_large_pages_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write but the last is a whole piece at a multiple of its size, whatever lies in it."""
    written: list[tuple[int, int]] = []

    class Told(io.FileIO):
        def write(self, data: Any) -> int:
            written.append((self.tell(), len(data)))
            return super().write(data)

    with io.BufferedWriter(Told(tmp_path / "file", "xb"), module.PIECE) as file:
        for n in (5, 3_000_000, module.PIECE, 17, 5_000_000):
            module._in_pieces(file, memoryview(bytes(n)))
    assert written[:-1] == [(i * module.PIECE, module.PIECE) for i in range(len(written) - 1)]
    assert sum(n for _, n in written) == 5 + 3_000_000 + module.PIECE + 17 + 5_000_000


def test_two_names_of_one_file(tmp_path: Path, tensor: Tensor, store: PanelStore) -> None:
    assert keep(store, tensor, packed(tensor))
    (tmp_path / "link.gguf").symlink_to(tmp_path / "model.gguf")
    assert found(store, first_tensor(tmp_path / "link.gguf")) is not None


def test_a_name_that_no_file_could_have_longer(tmp_path: Path, store: PanelStore) -> None:
    tensor = first_tensor(model_file(tmp_path / ("ж" * 120 + ".gguf"), "Q4_1"))  # 245 bytes, of 255
    assert keep(store, tensor, packed(tensor))


def test_of_a_changed_file_nothing_is_left(tmp_path: Path, tensor: Tensor, store: PanelStore) -> None:
    assert keep(store, tensor, packed(tensor))
    other = first_tensor(model_file(tmp_path / "model-2.gguf", "Q4_1"))  # its name begins as the first one's does
    assert keep(store, other, packed(other))
    before = files(store.folder)
    os.replace(model_file(tmp_path / "new", "Q4_1", seed=1), tmp_path / "model.gguf")  # of the same size
    new = first_tensor(tmp_path / "model.gguf")
    assert found(store, new) is None
    assert keep(store, new, packed(new))
    np.testing.assert_array_equal(found(store, new), packed(new))
    assert found(store, other) is not None
    assert found(PanelStore(store.folder), tensor) is None  # that of the old file, still mapped
    assert len(files(store.folder)) == len(before) == 2


@pytest.mark.parametrize("change", [lambda path: os.utime(path, ns=(0, 0)), os.remove], ids=["time", "removed"])
def test_of_a_file_that_changes_while_it_is_mapped(change: Any, tmp_path: Path, tensor: Tensor, store: PanelStore) -> None:
    change(tmp_path / "model.gguf")
    assert not keep(store, tensor, packed(tensor))
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"x",
        lambda whole: b"",
        lambda whole: bytes(len(whole)),
        lambda whole: whole.replace(b"model.gguf", b"other.gguf"),
        lambda whole: whole.replace(b"0+7", b"1+7"),
        lambda whole: b"[1]\n" + whole,
        lambda whole: whole.replace(b'"panels": {', b'"panels": 7, "x": {'),
    ],
    ids=["short", "long", "empty", "zeros", "of another file", "of others", "a list", "no panels"],
)
def test_a_damaged_file_is_made_anew(damage: Any, tensor: Tensor, store: PanelStore) -> None:
    data = packed(tensor)
    assert keep(store, tensor, data)
    (file,) = files(store.folder)
    whole = file.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    file.write_bytes(damaged)
    again = PanelStore(store.folder)
    assert found(again, tensor) is None
    assert keep(again, tensor, data)
    assert files(store.folder) == [file]
    np.testing.assert_array_equal(found(again, tensor), data)


def test_another_layout_is_made_anew(tensor: Tensor, store: PanelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep(store, tensor, packed(tensor))
    mark = layout_mark("Q4_1")
    assert len({layout_mark(name) for name in LAYOUTS}) == len(LAYOUTS)
    layout_mark.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "pack", lambda *args: np.roll(pack(*args), 64, axis=1))
        assert layout_mark("Q4_1") != mark
        assert found(PanelStore(store.folder), tensor) is None
    layout_mark.cache_clear()
    assert found(PanelStore(store.folder), tensor) is not None


def test_what_lies_in_no_file(tmp_path: Path, tensor: Tensor, store: PanelStore) -> None:
    """Or does not lie there in one piece, or in a mapping that is no model's."""
    made = MadeRows(tensor.data.shape, lambda rows: tensor.data[rows], (tensor.data,))
    with (tmp_path / "model.gguf").open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    foreign = np.frombuffer(mapping, np.uint8)[: tensor.nbytes].reshape(tensor.data.shape)
    whole = packed(tensor)
    in_memory = first_tensor(tmp_path / "model.gguf", mmap=False).data
    for data in (made, in_memory, tensor.data[::2], foreign):
        other = replace(tensor, data=data)
        panels = whole[: -(-len(data) // 16)]
        assert store.find(other, 0, len(panels)) is None
        assert not keep(store, other, panels)
    assert not (tmp_path / "cache").exists()


def test_without_a_folder(tensor: Tensor) -> None:
    assert not keep(PanelStore(None), tensor, packed(tensor))


def test_a_folder_that_cannot_be(tmp_path: Path, tensor: Tensor) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "panels"):
        assert not keep(PanelStore(folder), tensor, packed(tensor))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="Windows has no such mode, and root writes anywhere")
def test_a_read_only_folder(tmp_path: Path, tensor: Tensor, store: PanelStore) -> None:
    store.folder.mkdir(parents=True, mode=0o555)
    assert not keep(store, tensor, packed(tensor))
    assert files(store.folder) == []


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


@pytest.mark.parametrize("margin", [MARGIN, 1], ids=["1 GiB", "the model's size"])
def test_some_of_the_disk_stays_free(margin: int, tensor: Tensor, store: PanelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MARGIN", margin)
    data = packed(tensor)
    least = data.nbytes + max(margin, Key.of(tensor, 0, 7).source.size)
    disk(monkeypatch, least - 1)
    assert not keep(store, tensor, data)
    assert files(store.folder) == []
    disk(monkeypatch, least)
    assert keep(store, tensor, data)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_after_all(call: str, tensor: Tensor, store: PanelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    assert not keep(store, tensor, packed(tensor))
    assert files(store.folder) == []


def test_what_an_earlier_version_kept_goes(tensor: Tensor, store: PanelStore) -> None:
    """It had a folder of this name, with a file for each tensor."""
    assert keep(store, tensor, packed(tensor))
    (file,) = files(store.folder)
    file.unlink()
    file.mkdir()
    (file / "0.Q4_1.100x512.0+7").write_bytes(b"x")
    again = PanelStore(store.folder)
    assert found(again, tensor) is None
    assert keep(again, tensor, packed(tensor))
    assert files(store.folder) == [file]


def test_what_killed_processes_left(tensor: Tensor, store: PanelStore) -> None:
    store.folder.mkdir(parents=True)
    old, new = store.folder / f"{PARTIAL}0", store.folder / f"{PARTIAL}1"
    for path, hours in ((old, 25), (new, 23)):  # it may be a day old
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    assert keep(store, tensor, packed(tensor))
    assert not old.exists()
    assert new.exists()


def test_ctrl_c_before_every_line(tmp_path: Path, tensor: Tensor) -> None:
    data, whole = packed(tensor), 0
    for n in count():
        store = PanelStore(tmp_path / str(n))
        came = interrupted_at(n, module, partial(keep, store, tensor, data))
        held = files(store.folder)
        whole += len(held)
        assert len(held) <= 1, f"Ctrl-C before line {n}"
        if held:
            np.testing.assert_array_equal(found(PanelStore(store.folder), tensor), data)
        if not came:
            break
    assert n > 40  # the lines are really seen
    assert 0 < whole < n  # some came before the file's renaming, some after it


KEEP = """
import sys
import numpy as np
from pathlib import Path
from backends.device.panel_store import PanelStore
from test_panel_store import first_tensor, found, keep, packed
tensor, store = first_tensor(Path(sys.argv[1])), PanelStore(Path(sys.argv[2]))
data = packed(tensor)
sys.stdin.read(1)
for _ in range(100):
    assert keep(store, tensor, data) and np.array_equal(found(store, tensor), data)
"""


def test_two_processes_at_once(tmp_path: Path, tensor: Tensor, store: PanelStore) -> None:
    command = [sys.executable, "-c", KEEP, str(tmp_path / "model.gguf"), str(store.folder)]
    here = Path(__file__).parent
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here) for _ in range(2)]
    for process in both:
        process.stdin.write("x")
        process.stdin.flush()
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(files(store.folder)) == 1
    np.testing.assert_array_equal(found(store, tensor), packed(tensor))


def test_where_the_engine_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(**settings: Any) -> Path | None:
        return Model.load(TINY, **{"backend": "numpy", **settings}).backend.options.panels_folder

    monkeypatch.setenv("TINYLLAMA_PANELS", str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setenv("TINYLLAMA_PANELS", "~/panels")
    assert folder() == Path.home() / "panels"
    monkeypatch.setenv("TINYLLAMA_PANELS", "~nobody-of-this-name/panels")
    assert folder() == Path("~nobody-of-this-name/panels")
    assert folder(repack=False) is None
    assert folder(backend=Numpy()) is None
    assert folder(backend=Numpy(Options(panels_folder=Path("mine")))) == Path("mine")
    monkeypatch.setenv("TINYLLAMA_PANELS", "")
    assert folder() is None
    monkeypatch.delenv("TINYLLAMA_PANELS")
    assert folder() == cache_folder() / "panels"
    monkeypatch.delenv("TINYLLAMA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert folder() is None
