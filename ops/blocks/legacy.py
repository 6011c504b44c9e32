"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 weights share one float16 scale d, and in the _1 formats one float16 minimum m.

The layouts are ggml's (`block_q4_0` ... in ggml-common.h, `dequantize_row_*` in ggml-quants.c). The order of the float
operations is that of the `gguf` package, so results are equal to its bit for bit.
"""

from __future__ import annotations

import numpy as np

from .block import Bytes, Floats, block_format


@block_format("Q4_0", ggml_type=2, block_size=32, block_bytes=18)
def q4_0(blocks: Bytes) -> Floats:
    """w = d * (q - 8)

    byte   0        2                      18
           | d f16  | qs: 16 bytes         |    byte j: q of weight j in the low nibble, of weight j+16 in the high one
    """
    q = nibbles(blocks[:, 2:18]).view(np.int8)
    q -= 8
    weights = q.astype(np.float32)
    weights *= half(blocks, 0)
    return weights


@block_format("Q4_1", ggml_type=3, block_size=32, block_bytes=20)
def q4_1(blocks: Bytes) -> Floats:
    """w = d * q + m

    byte   0        2        4                      20
           | d f16  | m f16  | qs: as in Q4_0       |
    """
    weights = nibbles(blocks[:, 4:20]).astype(np.float32)
    weights *= half(blocks, 0)
    weights += half(blocks, 2)
    return weights


@block_format("Q5_0", ggml_type=6, block_size=32, block_bytes=22)
def q5_0(blocks: Bytes) -> Floats:
    """w = d * (q - 16)

    byte   0        2               6                      22
           | d f16  | qh: 32 bits   | qs: as in Q4_0       |    bit j of qh, lowest first: the fifth bit of weight j's q
    """
    q = five_bits(blocks[:, 2:6], blocks[:, 6:22]).view(np.int8)
    q -= 16
    weights = q.astype(np.float32)
    weights *= half(blocks, 0)
    return weights


@block_format("Q5_1", ggml_type=7, block_size=32, block_bytes=24)
def q5_1(blocks: Bytes) -> Floats:
    """w = d * q + m

    byte   0        2        4               8                      24
           | d f16  | m f16  | qh: 32 bits   | qs: as in Q4_0       |    qh as in Q5_0
    """
    weights = five_bits(blocks[:, 4:8], blocks[:, 8:24]).astype(np.float32)
    weights *= half(blocks, 0)
    weights += half(blocks, 2)
    return weights


@block_format("Q8_0", ggml_type=8, block_size=32, block_bytes=34)
def q8_0(blocks: Bytes) -> Floats:
    """w = d * q

    byte   0        2                      34
           | d f16  | q: 32 int8           |
    """
    weights = blocks[:, 2:34].view(np.int8).astype(np.float32)
    weights *= half(blocks, 0)
    return weights


def half(blocks: Bytes, at: int) -> Floats:
    """float32[n, 1]: the float16 at byte `at` of each block."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def nibbles(qs: Bytes) -> Bytes:
    """uint8[n, 32]: the 16 low halves of a block's bytes, then the 16 high ones."""
    q = np.empty((len(qs), 32), np.uint8)
    np.bitwise_and(qs, 15, out=q[:, :16])
    np.right_shift(qs, 4, out=q[:, 16:])
    return q


def five_bits(qh: Bytes, qs: Bytes) -> Bytes:
    """uint8[n, 32]: nibbles with a fifth bit each."""
    high = np.unpackbits(qh, axis=1, bitorder="little")  # [n, 32], 0 or 1
    high <<= 4
    high |= nibbles(qs)
    return high
