"""Floats to F32, F16 and BF16: rounding to the nearest, ties to even."""

from __future__ import annotations

import numpy as np

from .block import Bytes, Floats


def f32(blocks: Floats) -> Bytes:
    return blocks.astype("<f4").view(np.uint8)


def f16(blocks: Floats) -> Bytes:
    """What is too large for float16 (65,520 or more) becomes infinite."""
    return blocks.astype("<f2").view(np.uint8)


def bf16(blocks: Floats) -> Bytes:
    """The upper half of a float32, rounded. A NaN stays one: the highest bit of its fraction is set."""
    bits = blocks.view(np.uint32)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = bits + (0x7FFF + ((bits >> 16) & 1))
    upper = np.where(is_nan, bits | 0x400000, rounded) >> 16
    return upper.astype("<u2").view(np.uint8)
