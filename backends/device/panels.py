"""Quantised weights repacked for processors that multiply integers: sixteen rows side by side, in one layout for all formats.

An instruction for integer dot products multiplies four bytes by four in each of sixteen lanes and adds the products to the
lane's sum. With a row in each lane, four activations are the same for all of them, and nothing is ever summed across lanes.
So a weight [m, n] becomes panels of 16 rows, and a panel a sequence of blocks of 16 rows x 32 columns. Nothing is rounded
anew: scales and integers are those of the file. Rows beyond m are what the file's bytes would be if all were zero, so their
scales are 0.

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0:  w = d * (q - offset), or d * q + m where the format stores m

    panel  | block of columns 0-31 | block of columns 32-63 | ...
    block  | d: 16 float16 | m: 16 float16, if stored | quants |

Q4_K, Q5_K:  w = d * scale * q - dmin * min

    panel  | head of columns 0-255 | their 8 blocks | head of columns 256-511 | ...
    head   | d: 16 float16 | dmin: 16 float16 |
    block  | scale: 16 uint8 | min: 16 uint8 | quants |

Q6_K:  w = d * scale * (q - 32)

    panel  as above
    head   | d: 16 float16 |
    block  | scale of columns 0-15: 16 int8 | scale of columns 16-31: 16 int8 | quants |

Quants lie in groups of 64 bytes, four bytes of each row:

    byte   0       4       8     60       64
           | row 0 | row 1 | ... | row 15 | row 0 | ...
           | group 0                      | group 1 ...

    4 bits   4 groups. Byte j of a row in group g: q of column 4g+j in the low nibble, of column 4g+j+16 in the high one
    5 bits   the low four bits as above, then a fifth group: the fifth bits, 32 of a row, lowest first. Bit 8*j + i is that of
             column 4i+j, so shifted down by i the lowest bit of each of its bytes belongs to columns 4i ... 4i+3
    6 bits   the low four bits as above, then two groups of the upper two bits: of columns 0-15, and of 16-31. Bits 8*j + 2*i
             and 8*j + 2*i+1 are those of column 4i+j
    8 bits   8 groups. Byte j of a row in group g: q of column 4g+j. Q8_0's signed q is stored as q + 128

The blocks of the files are ggml's, from ggml-common.h; `ops/blocks` draws them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.blocks.k_quants import scales_and_mins
from ops.tensor import Tensor

from ..pages import let_go

Bytes = NDArray[np.uint8]

ROWS = 16  # of a panel
CHUNK = 1 << 20  # weights that a thread repacks at a time, which bounds memory

HALF, WORD = "<u2", "<u4"  # a float16, whose bits are only moved; four bytes of a row
NIBBLES, TOP_BITS, LOWEST_BITS, TWO_BITS = (np.uint32(0x01010101 * byte) for byte in (0x0F, 0x80, 0x01, 0x03))


@dataclass(frozen=True)
class Layout:
    """What the panels of a format have. No two formats have the same.

    bits: 4 or 5 or 6 or 8, in which a q is stored; offset: what is taken off q; stored_minimum: a block has a float16 m;
    super_blocks: 8 blocks have a head; halves: a block has two int8 scales, for 16 columns each, and no minimum.
    """

    bits: int
    offset: int = 0
    stored_minimum: bool = False
    super_blocks: bool = False
    halves: bool = False

    @property
    def number(self) -> int:
        """Its place in the table, by which kernels know it."""
        return list(LAYOUTS.values()).index(self)

    @property
    def columns(self) -> int:
        """Of a block or, where there are super-blocks, of one of these."""
        return 256 if self.super_blocks else 32


LAYOUTS = {  # by the format's name
    "Q4_0": Layout(4, offset=8),
    "Q4_1": Layout(4, stored_minimum=True),
    "Q5_0": Layout(5, offset=16),
    "Q5_1": Layout(5, stored_minimum=True),
    "Q8_0": Layout(8, offset=128),
    "Q4_K": Layout(4, super_blocks=True),
    "Q5_K": Layout(5, super_blocks=True),
    "Q6_K": Layout(6, offset=32, super_blocks=True, halves=True),
}


def layout_of(tensor: Tensor) -> Layout | None:
    """None for floats and other formats without one, and for what is no matrix of whole blocks."""
    layout = LAYOUTS.get(tensor.format.name)
    fits = layout is not None and len(tensor.shape) == 2 and tensor.shape[1] % layout.columns == 0
    return layout if fits else None


def panel_bytes(layout: Layout, n: int) -> int:
    """Bytes of a panel of n columns, a multiple of 32 (of 256 where there are super-blocks)."""
    return n // layout.columns * _packed(layout).itemsize


def packed_bytes(tensor: Tensor) -> int:
    """Bytes of all panels of a tensor that has a layout."""
    m, n = tensor.shape
    return -(-m // ROWS) * panel_bytes(LAYOUTS[tensor.format.name], n)


def pack(layout: Layout, raw: Bytes, n: int) -> Bytes:
    """uint8[ceil(m / 16), panel_bytes] of uint8[m, bytes per row]: a file's rows of n weights."""
    panels = np.empty((-(-len(raw) // ROWS), panel_bytes(layout, n)), np.uint8)
    _fill(panels, layout, raw)
    return panels


def pack_tensor(tensor: Tensor, out: Bytes, n_threads: int, first_panel: int = 0) -> None:
    """Fill `out`, uint8[k, panel_bytes] in C order, with k panels of a tensor that has a layout, from `first_panel` on.

    The file's pages are let go as they have been read, so that memory need not hold both forms of a weight.
    """
    layout, (m, n) = LAYOUTS[tensor.format.name], tensor.shape
    step = max(1, min(CHUNK // (ROWS * max(n, 1)), -(-len(out) // n_threads)))

    def rows_of(start: int, stop: int) -> slice:
        return slice((first_panel + start) * ROWS, min((first_panel + stop) * ROWS, m))

    def fill(start: int) -> None:
        panels = out[start : start + step]
        rows = tensor.data[rows_of(start, start + len(panels))]
        _fill(panels, layout, rows)
        let_go(rows if isinstance(tensor.data, np.ndarray) else tensor.data)

    with ThreadPoolExecutor(n_threads, "panels") as pool:
        list(pool.map(fill, range(0, len(out), step)))  # a list: it raises what a thread raised
    if isinstance(tensor.data, np.ndarray):
        let_go(tensor.data[rows_of(0, len(out))])  # also the pages that two chunks share


@lru_cache
def _raw(layout: Layout) -> np.dtype[Any]:
    """A block of a row as it is in the file."""
    if layout.halves:
        return np.dtype([("ql", WORD, (2, 2, 8)), ("qh", WORD, (2, 8)), ("scales", np.int8, (8, 2)), ("d", HALF)])
    if layout.super_blocks:
        high: list[Any] = [("qh", WORD, 8)] if layout.bits == 5 else []
        return np.dtype([("d", HALF), ("dmin", HALF), ("scales", np.uint8, 12), *high, ("qs", WORD, (4, 8))])
    m: list[Any] = [("m", HALF)] if layout.stored_minimum else []
    high = [("qh", np.uint8, 4)] if layout.bits == 5 else []
    return np.dtype([("d", HALF), *m, *high, ("qs", WORD, 8 if layout.bits == 8 else 4)])


@lru_cache
def _packed(layout: Layout) -> np.dtype[Any]:
    """A block (of K formats: a head and its 8 blocks) of a panel, as drawn above."""
    q: list[Any] = [("q", WORD, (8 if layout.bits == 8 else 4, ROWS))]
    if layout.bits == 5:
        q += [("fifth", WORD, ROWS)]
    if layout.bits == 6:
        q += [("upper", WORD, (2, ROWS))]
    if layout.halves:
        block = np.dtype([("scale", np.int8, (2, ROWS)), *q])
        return np.dtype([("d", HALF, ROWS), ("blocks", block, 8)])
    if layout.super_blocks:
        block = np.dtype([("scale", np.uint8, ROWS), ("min", np.uint8, ROWS), *q])
        return np.dtype([("d", HALF, ROWS), ("dmin", HALF, ROWS), ("blocks", block, 8)])
    m: list[Any] = [("m", HALF, ROWS)] if layout.stored_minimum else []
    return np.dtype([("d", HALF, ROWS), *m, *q])


def _fill(panels: Bytes, layout: Layout, raw: Bytes) -> None:
    """Panels of the rows `raw`, of which the last panel may have fewer than 16."""
    if missing := ROWS * len(panels) - len(raw):
        raw = np.concatenate([raw, np.zeros((missing, raw.shape[1]), np.uint8)])
    blocks = panels.view(_packed(layout))  # [panel, block]
    rows = np.ascontiguousarray(raw).view(_raw(layout)).reshape(len(blocks), ROWS, blocks.shape[1])
    if layout.halves:
        _fill_q6_k(blocks, rows)
    elif layout.super_blocks:
        _fill_q4_k_or_q5_k(blocks, rows, layout)
    else:
        _fill_plain(blocks, rows, layout)


def _fill_plain(blocks: NDArray[Any], rows: NDArray[Any], layout: Layout) -> None:
    blocks["d"] = _side_by_side(rows["d"])
    if layout.stored_minimum:
        blocks["m"] = _side_by_side(rows["m"])
    q = blocks["q"]
    q[:] = _side_by_side(rows["qs"])
    if layout.bits == 8:
        q ^= TOP_BITS  # int8 and 128 more
    if layout.bits == 5:
        qh = rows["qh"]  # byte k: of columns 8k ... 8k+7, whose i is 2k or 2k+1
        fifth = SPREAD[qh[..., 0]]
        for k in range(1, 4):
            fifth |= SPREAD[qh[..., k]] << (2 * k)
        blocks["fifth"] = _side_by_side(fifth)


def _fill_q4_k_or_q5_k(blocks: NDArray[Any], rows: NDArray[Any], layout: Layout) -> None:
    blocks["d"], blocks["dmin"] = _side_by_side(rows["d"]), _side_by_side(rows["dmin"])
    scales, mins = scales_and_mins(rows["scales"].reshape(-1, 12))
    of_blocks = blocks["blocks"]
    of_blocks["scale"] = _side_by_side(scales.reshape(*rows.shape, 8))
    of_blocks["min"] = _side_by_side(mins.reshape(*rows.shape, 8))
    # Word i of a run: weights 4i ... 4i+3 of a block in the low nibbles, of the next block in the high ones
    qs = np.ascontiguousarray(_side_by_side(rows["qs"]))  # [panel, super-block, run, word, row]
    first, second = qs[..., :4, :], qs[..., 4:, :]  # columns 0-15 and 16-31
    of_blocks["q"][:, :, 0::2] = (first & NIBBLES) | ((second & NIBBLES) << 4)
    of_blocks["q"][:, :, 1::2] = ((first >> 4) & NIBBLES) | (second & ~NIBBLES)
    if layout.bits == 5:  # bit k of a byte is that of block k
        qh = np.ascontiguousarray(_side_by_side(rows["qh"]))  # [panel, super-block, word, row]
        of_block = np.arange(8, dtype=np.uint32)[:, None]
        fifth = np.zeros_like(qh)
        for i in range(8):
            fifth |= ((qh[..., i, None, :] >> of_block) & LOWEST_BITS) << i
        of_blocks["fifth"] = fifth


def _fill_q6_k(blocks: NDArray[Any], rows: NDArray[Any]) -> None:
    blocks["d"] = _side_by_side(rows["d"])
    of_blocks = blocks["blocks"]
    of_blocks["scale"] = _side_by_side(rows["scales"])
    ql = np.ascontiguousarray(_side_by_side(rows["ql"]))  # [panel, super-block, run, half of a run, word, row]
    qh = np.ascontiguousarray(_side_by_side(rows["qh"]))  # [panel, super-block, run, word, row]
    for k in range(4):  # blocks k and k+4: a run has four
        low = (ql[:, :, :, k % 2] >> (k // 2 * 4)) & NIBBLES  # word i: columns 4i ... 4i+3 of a block
        of_blocks["q"][:, :, k::4] = low[..., :4, :] | (low[..., 4:, :] << 4)
        high = (qh >> (2 * k)) & TWO_BITS
        upper = of_blocks["upper"][:, :, k::4]
        upper[..., 0, :] = _in_turns(high[..., :4, :])
        upper[..., 1, :] = _in_turns(high[..., 4:, :])


def _in_turns(high: NDArray[Any]) -> NDArray[Any]:
    """Four words whose bytes have two bits each, as one: [..., 4, row] -> [..., row]"""
    word: NDArray[Any] = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    return word


def _side_by_side(field: NDArray[Any]) -> NDArray[Any]:
    """[panel, row, block, ...] -> [panel, block, ..., row]"""
    return np.moveaxis(field, 1, -1)


def _spread() -> NDArray[np.uint32]:
    """uint32[256]: bit 4i+j of a byte becomes bit 8*j + i."""
    byte = np.arange(256, dtype=np.uint32)
    spread = np.zeros_like(byte)
    for i, j in product(range(2), range(4)):
        spread |= ((byte >> (4 * i + j)) & 1) << (8 * j + i)
    return spread


SPREAD = _spread()
