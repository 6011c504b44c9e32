"""Floats into blocks: the way back from `BlockFormat.dequantize`. The arithmetic is in `*_quantize.py`, beside the layouts."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, ShapeError
from . import float_quantize, k_quantize, legacy_quantize
from .block import FORMATS, BlockFormat, Bytes, Floats

# Each takes float32[n, block_size] to uint8[n, block_bytes].
QUANTIZERS: dict[str, Callable[[Floats], Bytes]] = {
    "F32": float_quantize.f32,
    "F16": float_quantize.f16,
    "BF16": float_quantize.bf16,
    "Q4_0": legacy_quantize.q4_0,
    "Q4_1": legacy_quantize.q4_1,
    "Q5_0": legacy_quantize.q5_0,
    "Q5_1": legacy_quantize.q5_1,
    "Q8_0": legacy_quantize.q8_0,
    "Q4_K": k_quantize.q4_k,
    "Q5_K": k_quantize.q5_k,
    "Q6_K": k_quantize.q6_k,
}
CHUNK = 1 << 18  # weights in work at a time, which bounds memory. Far fewer, and threads would wait for Python's lock


def quantize(values: NDArray[Any], format: BlockFormat | str) -> Bytes:
    """uint8[n_rows, bytes per row] of float32[..., n]: each row cut into blocks, n_rows the product of the leading axes.

    Blocks do not depend on each other: rows may be quantised in any pieces, and on several threads at once. Other floats are
    rounded to float32 first. It takes some 5 MB beside the result. An infinite weight or NaN spoils its block, and is no error.

    Raises OptionError for a format that is unknown or only read, and ShapeError for a row that is no multiple of its block.
    """
    name = format.name if isinstance(format, BlockFormat) else format
    if name not in QUANTIZERS:
        raise OptionError(f"weights cannot be quantised to {name}: choose one of {', '.join(QUANTIZERS)}")
    to = FORMATS[name]
    if values.ndim == 0 or values.shape[-1] % to.block_size:
        n = "a single number" if values.ndim == 0 else f"a row of {values.shape[-1]} weights"
        raise ShapeError(f"{name} takes rows of a multiple of {to.block_size} weights, not {n}: choose another format")
    blocks = values.reshape(-1, to.block_size)
    made = np.empty((len(blocks), to.block_bytes), np.uint8)
    step = CHUNK // to.block_size
    for start in range(0, len(blocks), step):
        chunk = np.ascontiguousarray(blocks[start : start + step], np.float32)
        with np.errstate(all="ignore"):  # float16 overflows to infinity, as its reader expects
            made[start : start + step] = QUANTIZERS[name](chunk)
    return made.reshape(prod(values.shape[:-1]), to.row_bytes(values.shape[-1]))
