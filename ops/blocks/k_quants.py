"""Q2_K ... Q6_K: 256 weights in 8 or 16 sub-blocks, whose own scales are small integers times one float16 a block.

The layouts are ggml's (`block_q2_K` ... in ggml-common.h, `dequantize_row_*` in ggml-quants.c; they came with pull
request 1684 of llama.cpp). The order of the float operations is that of the `gguf` package, so results are equal to its
bit for bit. In the drawings a group is 32 weights and a sub-block 16 or 32, both numbered in the order of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block import Bytes, Floats, block_format
from .legacy import half


@block_format("Q2_K", ggml_type=10, block_size=256, block_bytes=84)
def q2_k(blocks: Bytes) -> Floats:
    """w = d * scale * q - dmin * min, sub-blocks of 16

    byte   0                    16                 80        82          84
           | 16 scales          | qs: 64 bytes     | d f16   | dmin f16  |

    byte i of scales: scale of sub-block i in the low nibble, its min in the high one
    qs: two runs of 32 bytes, 128 weights each
        byte j of a run: q of weights j, j+32, j+64, j+96, two bits each, lowest first
    """
    scales = blocks[:, :16]
    q = planes(blocks[:, 16:80], run=32, bits=2)
    return scaled(q, half(blocks, 80) * (scales & 15), half(blocks, 82) * (scales >> 4))


@block_format("Q3_K", ggml_type=11, block_size=256, block_bytes=110)
def q3_k(blocks: Bytes) -> Floats:
    """w = d * (scale - 32) * (q - 4), sub-blocks of 16

    byte   0                    32                 96                   108      110
           | hmask: 32 bytes    | qs: as in Q2_K   | scales: 12 bytes   | d f16  |

    hmask, bit g of byte j: the third bit of q of weight j of group g
    scales: six bits each. Bytes 0-7: the four low bits of scales i (low nibble) and i+8 (high nibble);
            bytes 8-11: the two high bits of scales i, i+4, i+8, i+12, lowest first
    """
    low = planes(blocks[:, 96:104], run=8, bits=4)
    low |= planes(blocks[:, 104:108], run=4, bits=2) << 4
    scales = low.view(np.int8) - np.int8(32)
    q = planes(blocks[:, :32], run=32, bits=1)
    q <<= 2
    q |= planes(blocks[:, 32:96], run=32, bits=2)
    signed = q.view(np.int8)
    signed -= 4
    return scaled(signed, half(blocks, 108) * scales)


@block_format("Q4_K", ggml_type=12, block_size=256, block_bytes=144)
def q4_k(blocks: Bytes) -> Floats:
    """w = d * scale * q - dmin * min, sub-blocks of 32

    byte   0        2           4                    16                  144
           | d f16  | dmin f16  | scales: 12 bytes   | qs: 128 bytes     |

    scales: eight scales and eight mins, six bits each (`scales_and_mins` draws them)
    qs: four runs of 32 bytes, 64 weights each
        byte j of a run: q of weight j in the low nibble, of weight j+32 in the high one
    """
    scales, mins = scales_and_mins(blocks[:, 4:16])
    q = planes(blocks[:, 16:144], run=32, bits=4)
    return scaled(q, half(blocks, 0) * scales, half(blocks, 2) * mins)


@block_format("Q5_K", ggml_type=13, block_size=256, block_bytes=176)
def q5_k(blocks: Bytes) -> Floats:
    """w = d * scale * q - dmin * min, sub-blocks of 32

    byte   0        2           4                    16                 48                176
           | d f16  | dmin f16  | scales: as in Q4_K | qh: 32 bytes     | qs: as in Q4_K  |

    qh, bit g of byte j: the fifth bit of q of weight j of group g
    """
    scales, mins = scales_and_mins(blocks[:, 4:16])
    q = planes(blocks[:, 16:48], run=32, bits=1)
    q <<= 4
    q |= planes(blocks[:, 48:176], run=32, bits=4)
    return scaled(q, half(blocks, 0) * scales, half(blocks, 2) * mins)


@block_format("Q6_K", ggml_type=14, block_size=256, block_bytes=210)
def q6_k(blocks: Bytes) -> Floats:
    """w = d * scale * (q - 32), sub-blocks of 16

    byte   0                  128               192                  208      210
           | ql: 128 bytes    | qh: 64 bytes    | scales: 16 int8    | d f16  |

    ql: two runs of 64 bytes, 128 weights each
        byte j of a run: the four low bits of q of weight j in the low nibble, of weight j+64 in the high one
    qh: two runs of 32 bytes, 128 weights each
        byte j of a run: the two high bits of q of weights j, j+32, j+64, j+96, lowest first
    """
    scales = blocks[:, 192:208].view(np.int8)
    q = planes(blocks[:, 128:192], run=32, bits=2)
    q <<= 4
    q |= planes(blocks[:, :128], run=64, bits=4)
    signed = q.view(np.int8)
    signed -= 32
    return scaled(signed, half(blocks, 208) * scales)


def planes(packed: Bytes, run: int, bits: int) -> Bytes:
    """Unpack uint8[n, k] to uint8[n, k * 8 // bits]: of each `run` bytes first all lowest `bits`, then the next."""
    n, k = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields: Bytes = packed.reshape(n, k // run, 1, run) >> shifts  # [n, runs, 8 // bits, run]
    fields &= (1 << bits) - 1
    return fields.reshape(n, k * 8 // bits)


def scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """uint8[n, 8] each, from the 12 bytes of Q4_K and Q5_K:

    byte 0-3   bits 0-5: scale i             bits 6-7: the two high bits of scale i+4
    byte 4-7   bits 0-5: min i               bits 6-7: the two high bits of min i+4
    byte 8-11  bits 0-3: low of scale i+4    bits 4-7: low of min i+4
    """
    scale, low_min, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([scale & 63, (mixed & 15) | (scale >> 6 << 4)], axis=1)
    mins = np.concatenate([low_min & 63, (mixed >> 4) | (low_min >> 6 << 4)], axis=1)
    return scales, mins


def scaled(q: NDArray[Any], scales: Floats, mins: Floats | None = None) -> Floats:
    """float32[n, 256]: q of each sub-block times its scale, less its min; scales and mins are [n, sub-blocks]."""
    weights = q.astype(np.float32)
    by_block = weights.reshape(*scales.shape, 256 // scales.shape[1])
    by_block *= scales[:, :, None]
    if mins is not None:
        by_block -= mins[:, :, None]
    return weights
