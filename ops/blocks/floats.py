"""F32, F16, BF16: a block is one number."""

from __future__ import annotations

import numpy as np

from .block import Bytes, Floats, block_format


@block_format("F32", ggml_type=0, block_size=1, block_bytes=4)
def f32(blocks: Bytes) -> Floats:
    return blocks.view("<f4").astype(np.float32)  # a copy, so that what was read of a mapped file can be let go


@block_format("F16", ggml_type=1, block_size=1, block_bytes=2)
def f16(blocks: Bytes) -> Floats:
    return blocks.view("<f2").astype(np.float32)


@block_format("BF16", ggml_type=30, block_size=1, block_bytes=2)
def bf16(blocks: Bytes) -> Floats:
    """The upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)
