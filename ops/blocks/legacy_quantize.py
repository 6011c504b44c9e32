"""Floats to Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: one pass, no search. `legacy.py` draws the blocks.

Each is equal to the `gguf` package's bit for bit, and so is each order of float operations here: 1/d is rounded before it is
multiplied, and d is used in float32 though it is stored in float16. (A block that is infinite, NaN or all below 2**-128 has
no finite 1/d. Its integers are then what the processor makes of NaN, in that package too. Its d is infinite, NaN or zero.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block import Bytes, Floats


def q4_0(blocks: Floats) -> Bytes:
    """The largest weight, with its sign, becomes exactly -8: of -8..7 that is the integer without a twin, so all are used."""
    d = largest(blocks) / np.float32(-8)
    return joined(half_bytes(d), two_a_byte(integers(blocks * inverse(d), 8.5, 15)))


def q4_1(blocks: Floats) -> Bytes:
    """The least weight becomes 0 and the largest 15."""
    d, minimum = span(blocks, 15)
    q = integers((blocks - minimum) * inverse(d), 0.5, 15)
    return joined(half_bytes(d), half_bytes(minimum), two_a_byte(q))


def q5_0(blocks: Floats) -> Bytes:
    """As Q4_0, with -16..15."""
    d = largest(blocks) / np.float32(-16)
    q = integers(blocks * inverse(d), 16.5, 31)
    return joined(half_bytes(d), fifth_bits(q), two_a_byte(q))


def q5_1(blocks: Floats) -> Bytes:
    """As Q4_1, with 0..31."""
    d, minimum = span(blocks, 31)
    q = integers((blocks - minimum) * inverse(d), 0.5, 31)
    return joined(half_bytes(d), half_bytes(minimum), fifth_bits(q), two_a_byte(q))


def q8_0(blocks: Floats) -> Bytes:
    """The largest magnitude becomes 127; halves are rounded away from zero."""
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * inverse(d)
    whole = np.trunc(scaled)
    scaled -= whole
    scaled *= 2  # the fraction, exactly: below 1 it rounds towards zero
    whole += np.trunc(scaled, out=scaled)
    return joined(half_bytes(d), whole.astype(np.int8).view(np.uint8))


def largest(blocks: Floats) -> Floats:
    """float32[n, 1]: the weight of largest magnitude, with its sign; the first of equals."""
    at = np.abs(blocks).argmax(axis=1, keepdims=True)
    weight: Floats = np.take_along_axis(blocks, at, axis=1)
    return weight


def span(blocks: Floats, steps: int) -> tuple[Floats, Floats]:
    """float32[n, 1] each: the `steps`-th part of what lies between the least and the largest weight, and the least."""
    minimum = blocks.min(axis=1, keepdims=True)
    return (blocks.max(axis=1, keepdims=True) - minimum) / np.float32(steps), minimum


def inverse(d: Floats) -> Floats:
    """1/d, and 0 for a block of equal weights: all its integers are then 0 or the middle."""
    reciprocal: Floats = np.where(d == 0, np.float32(0), np.float32(1) / d)
    return reciprocal


def integers(scaled: Floats, offset: float, highest: int) -> Bytes:
    """uint8[n, 32]: scaled + offset cut to an integer, which rounds where offset ends in a half."""
    scaled += np.float32(offset)
    q: Bytes = np.trunc(scaled, out=scaled).astype(np.uint8)
    np.minimum(q, np.uint8(highest), out=q)
    return q


def half_bytes(d: Floats) -> Bytes:
    """uint8[n, 2]: float16, little-endian. What is too large for it becomes infinite."""
    return d.astype("<f2").view(np.uint8)


def two_a_byte(q: Bytes) -> Bytes:
    """uint8[n, 16]: of 32 integers the low four bits, the first 16 in the low nibbles, the others in the high ones."""
    packed: Bytes = np.left_shift(q[:, 16:], 4)
    packed |= q[:, :16] & 15
    return packed


def fifth_bits(q: Bytes) -> Bytes:
    """uint8[n, 4]: bit j, lowest first, is the fifth bit of integer j."""
    return np.packbits(q >> 4, axis=1, bitorder="little")


def joined(*fields: NDArray[Any]) -> Bytes:
    block: Bytes = np.concatenate(fields, axis=1)
    return block
