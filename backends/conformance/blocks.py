"""Weights in every block format: any bytes, with the scales of a block set so that each weight is a finite number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.blocks import FORMATS, BlockFormat
from ops.tensor import Tensor

Bytes = NDArray[np.uint8]

SCALES = ("usual", "mixed", "largest", "smallest", "zero")
# Where the scales (and minima) of a block are, and their type: ggml's layouts, as ops/blocks draws them.
HALF, SINGLE = np.dtype("<f2"), np.dtype("<f4")
SCALES_AT: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "Q4_0": (HALF, (0,)), "Q4_1": (HALF, (0, 2)), "Q5_0": (HALF, (0,)), "Q5_1": (HALF, (0, 2)), "Q8_0": (HALF, (0,)),
    "Q4_0_F32": (SINGLE, (0,)), "Q4_1_F32": (SINGLE, (0, 4)), "Q8_0_F32": (SINGLE, (0,)),
    "Q2_K": (HALF, (80, 82)), "Q3_K": (HALF, (108,)), "Q4_K": (HALF, (0, 2)), "Q5_K": (HALF, (0, 2)), "Q6_K": (HALF, (208,)),
}  # fmt: skip
LARGEST = 1e10  # of a weight in a format that is not in the table: sums of products stay finite in float32


def weight(rng: np.random.Generator, name: str, shape: tuple[int, ...], format_name: str, scales: str) -> Tensor:
    """A tensor of random blocks. Its weights are about 1 if the scales are "usual"."""
    kind = FORMATS[format_name]
    n_blocks = int(np.prod(shape)) // kind.block_size
    if kind.block_size == 1:
        blocks = _floats(rng, n_blocks, kind, scales)
    else:
        blocks = rng.integers(0, 256, (n_blocks, kind.block_bytes), np.uint8)
        dtype, places = SCALES_AT.get(kind.name, (HALF, ()))
        for at in places:
            drawn = _scales(rng, n_blocks, scales, dtype).astype(dtype)
            blocks[:, at : at + dtype.itemsize] = drawn.view(np.uint8).reshape(n_blocks, -1)
        for _ in range(0 if kind.name in SCALES_AT else 100):
            if not (wrong := ~_usable(kind, blocks)).any():
                break
            blocks[wrong] = rng.integers(0, 256, (wrong.sum(), kind.block_bytes), np.uint8)
        else:
            blocks[~_usable(kind, blocks)] = 0
    return Tensor(name, shape, kind, np.ascontiguousarray(blocks.reshape(*shape[:-1], -1)))  # as a file's are


def _scales(rng: np.random.Generator, n: int, scales: str, dtype: np.dtype[Any] = HALF) -> Any:
    """float16's whole range: denormal below 6e-5, the smallest 6e-8, the largest 65504.

    Of float32 what no float16 holds, as far as sums of products stay numbers with all their digits: 1e-27 to 1e25.
    """
    sign = rng.choice([-1.0, 1.0], n)
    if scales == "mixed":
        return sign * 2.0 ** (rng.uniform(-20, 10, n) if dtype == HALF else rng.uniform(-40, 40, n))
    if scales == "largest":
        return sign * (rng.choice([65504.0, 32768.0, 60000.0], n) if dtype == HALF else 2.0 ** rng.uniform(80, 83, n))
    if scales == "smallest":
        return sign * (rng.integers(1, 1024, n) * 2.0**-24 if dtype == HALF else 2.0 ** rng.uniform(-90, -80, n))
    if scales == "zero":
        return sign * rng.uniform(0.5, 1, n) * rng.integers(0, 2, n)
    return sign * rng.uniform(0.01, 0.1, n)


def _floats(rng: np.random.Generator, n: int, kind: BlockFormat, scales: str) -> Bytes:
    values = (rng.standard_normal(n) * (1 if scales == "usual" else _scales(rng, n, scales))).clip(-65504, 65504)
    single = values.astype("<f4")
    if kind.name == "F16":
        return single.astype("<f2").view(np.uint8).reshape(n, 2)
    return single.view(np.uint8).reshape(n, 4)[:, 4 - kind.block_bytes :]  # BF16 is the upper half of a float32


def _usable(kind: BlockFormat, blocks: Bytes) -> Any:
    with np.errstate(all="ignore"):
        weights = kind.dequantize(blocks)
        return np.isfinite(weights).all(axis=1) & (np.abs(weights) < LARGEST).all(axis=1)
