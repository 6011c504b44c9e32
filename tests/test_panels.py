"""Repacked weights, read again weight by weight from the drawing of the layout, bit for bit against the `gguf` package."""

from __future__ import annotations

import mmap
import re
import struct
import sys
from collections.abc import Iterator

import gguf
import numpy as np
import pytest

from backends.conformance.blocks import SCALES, weight
from backends.device import panels
from backends.device.arena import PIECE, Arena
from backends.device.panels import LAYOUTS, layout_of, pack, pack_tensor, packed_bytes, panel_bytes
from ops.blocks import FORMATS
from ops.tensor import MadeRows, Tensor

every_layout = pytest.mark.parametrize("name", LAYOUTS)
BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
OFFSET = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "Q6_K": 32}
QUANT_BYTES = {4: 256, 5: 256 + 64, 6: 256 + 128, 8: 512}  # of 16 rows x 32 columns


def drawn(name: str, m: int, scales: str = "usual", seed: int = 0) -> Tensor:
    n = 512 if name.endswith("K") else 160
    return weight(np.random.default_rng(seed), "w", (m, n), name, scales)


def right(tensor: Tensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, gguf.GGMLQuantizationType[tensor.format.name])


def unpacked(name: str, packed: np.ndarray, n: int) -> np.ndarray:
    """float32[16 * panels, n]: every weight from where the drawing says that it is."""
    values = np.empty((16 * len(packed), n), np.float32)
    for p, panel in enumerate(packed):
        for r, c, q, scale, minimum in numbers_of(name, panel.tobytes(), n):
            values[16 * p + r, c] = scale * np.float32(q - OFFSET.get(name, 0))
            if minimum is not None:
                values[16 * p + r, c] += minimum
    return values


def numbers_of(name: str, panel: bytes, n: int) -> Iterator[tuple]:
    """(row, column, q, scale, minimum or None) of each weight of a panel, which must end with the last of them."""

    def half(at: int) -> np.float32:
        return np.float32(struct.unpack_from("<e", panel, at)[0])

    at, bits = 0, BITS[name]
    for block in range(n // 32):
        if name.endswith("K") and block % 8 == 0:
            head, at = at, at + (32 if name == "Q6_K" else 64)
        scales, at = at, at + {"Q4_1": 64, "Q5_1": 64}.get(name, 32)
        for r in range(16):
            for c in range(32):
                minimum = None
                if name == "Q6_K":
                    scale = half(head + 2 * r) * np.float32(struct.unpack_from("b", panel, scales + 16 * (c // 16) + r)[0])
                elif name in ("Q4_K", "Q5_K"):
                    scale = half(head + 2 * r) * np.float32(panel[scales + r])
                    minimum = -(half(head + 32 + 2 * r) * np.float32(panel[scales + 16 + r]))
                else:
                    scale = half(scales + 2 * r)
                    minimum = half(scales + 32 + 2 * r) if name in ("Q4_1", "Q5_1") else None
                column = c if bits == 8 else c % 16
                q = panel[at + 64 * (column // 4) + 4 * r + column % 4]
                if bits < 8:
                    q = q >> 4 if c >= 16 else q & 15
                if bits == 5:
                    fifths = struct.unpack_from("<I", panel, at + 256 + 4 * r)[0]
                    q |= (fifths >> (c % 16 // 4 + 8 * (c % 4) + 4 * (c // 16)) & 1) << 4
                if bits == 6:
                    upper = struct.unpack_from("<I", panel, at + 256 + 64 * (c // 16) + 4 * r)[0]
                    q |= (upper >> (2 * (c % 16 // 4) + 8 * (c % 4)) & 3) << 4
                yield r, 32 * block + c, q, scale, minimum
        at += QUANT_BYTES[bits]
    assert at == len(panel)


@every_layout
@pytest.mark.parametrize("scales", SCALES)
def test_weights_are_the_same_to_the_last_bit(name, scales):
    tensor = drawn(name, 21, scales)  # a panel and five rows
    packed = pack(layout_of(tensor), tensor.data, tensor.shape[1])
    assert packed.nbytes == packed_bytes(tensor)
    values = unpacked(name, packed, tensor.shape[1])
    np.testing.assert_array_equal(values[:21].view(np.uint32), right(tensor).view(np.uint32))
    assert not values[21:].any()


@every_layout
def test_sizes(name):
    n = 512
    heads = {"Q4_K": 64, "Q5_K": 64, "Q6_K": 32}.get(name, 0) * (n // 256)
    scales = {"Q4_1": 64, "Q5_1": 64}.get(name, 32) * (n // 32)
    wanted = heads + scales + QUANT_BYTES[BITS[name]] * (n // 32)
    assert panel_bytes(LAYOUTS[name], n) == wanted
    for m, n_panels in ((1, 1), (16, 1), (17, 2), (160, 10)):
        data = np.zeros((m, FORMATS[name].row_bytes(n)), np.uint8)
        assert packed_bytes(Tensor("w", (m, n), FORMATS[name], data)) == n_panels * wanted


def test_kernels_know_a_layout_by_its_number():
    names = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
    assert [LAYOUTS[name].number for name in names] == list(range(8))
    for name in names:
        assert (LAYOUTS[name].bits, LAYOUTS[name].offset) == (BITS[name], OFFSET.get(name, 0))
        assert LAYOUTS[name].stored_minimum == (name in ("Q4_1", "Q5_1"))
        assert LAYOUTS[name].super_blocks == name.endswith("K")
        assert LAYOUTS[name].halves == (name == "Q6_K")


def test_what_has_no_layout():
    rng = np.random.default_rng(1)
    for name in set(FORMATS) - set(LAYOUTS):
        assert layout_of(weight(rng, "w", (16, 256), name, "usual")) is None
    assert layout_of(weight(rng, "w", (64,), "Q8_0", "usual")) is None
    assert layout_of(weight(rng, "w", (2, 16, 32), "Q8_0", "usual")) is None
    assert layout_of(weight(rng, "w", (3, 32), "Q8_0", "usual")) is LAYOUTS["Q8_0"]


@every_layout
@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_and_several_buffers(name, n_threads, monkeypatch):
    """However the work is cut, each panel is what it is by itself."""
    tensor = drawn(name, 16 * 9 + 3)
    n = tensor.shape[1]
    monkeypatch.setattr(panels, "CHUNK", 2 * 16 * n)  # two panels at a time
    alone = [pack(layout_of(tensor), tensor.data[i : i + 16], n) for i in range(0, tensor.shape[0], 16)]
    order = np.random.default_rng(2).permutation(tensor.shape[0])
    stored = tensor.data[np.argsort(order)]
    made = Tensor("w", tensor.shape, tensor.format, MadeRows(stored.shape, lambda rows: stored[order[rows]], (stored,)))
    for source in (tensor, made):
        for ends in ([10], [4, 10], [1, 2, 9, 10]):
            buffers, first = [], 0
            for end in ends:
                buffers.append(np.full((end - first, panel_bytes(layout_of(tensor), n)), 0xAA, np.uint8))
                pack_tensor(source, buffers[-1], n_threads, first)
                first = end
            np.testing.assert_array_equal(np.concatenate(buffers), np.concatenate(alone))


def test_what_a_thread_raises_is_raised():
    def make(rows: slice) -> np.ndarray:
        raise OSError("the file is gone")

    tensor = Tensor("w", (32, 32), FORMATS["Q4_0"], MadeRows((32, 18), make))
    with pytest.raises(OSError, match="the file is gone"):
        pack_tensor(tensor, np.empty((2, panel_bytes(LAYOUTS["Q4_0"], 32)), np.uint8), 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what of a mapping is resident (/proc/self/smaps)")
def test_pages_of_the_file_are_let_go(tmp_path):
    m, n = 2048, 1024
    path = tmp_path / "weights"
    path.write_bytes(bytes(1000 + m * n // 32 * 18))
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def resident() -> int:
        with open("/proc/self/smaps") as smaps:
            return 1024 * int(re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", smaps.read())[1])

    data = np.frombuffer(mapping, np.uint8)[1000:].reshape(m, -1)
    assert not data.any()
    assert resident() >= data.nbytes
    pack_tensor(Tensor("w", (m, n), FORMATS["Q4_0"], data), np.empty((m // 16, panel_bytes(LAYOUTS["Q4_0"], n)), np.uint8), 2)
    assert resident() <= 2 * mmap.PAGESIZE  # the first and the last, which belong to neighbours too


def test_arrays_of_an_arena():
    """Each begins at a line of the cache, and none lies in another."""
    arena = Arena()
    taken = [arena.take(shape) for shape in [(3, 5), (1, 64), (7, 1_000_003), (2, PIECE), (1, 1)]]
    for i, array in enumerate(taken):
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
        array[:] = i
    for i, array in enumerate(taken):
        assert (array == i).all()
