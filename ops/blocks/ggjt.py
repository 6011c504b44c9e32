"""Q4_0, Q4_1 and Q8_0 as files of spring 2023 have them: with scales in float32, which GGUF has no blocks for.

ggjt v3 (llama.cpp's pull request 1508, May 2023) made these scales float16. A scale such as max/15 is no float16, so a block
of before then keeps a form of its own here: nothing is lost. The quants lie as in the blocks of `legacy.py`, the order that
ggjt v2 brought (pull request 1405).
"""

from __future__ import annotations

import numpy as np

from .block import Bytes, Floats, block_format
from .legacy import nibbles

WITH_FLOAT32_SCALES = {"Q4_0": "Q4_0_F32", "Q4_1": "Q4_1_F32", "Q8_0": "Q8_0_F32"}  # a name of ggml's -> what it meant then


@block_format("Q4_0_F32", ggml_type=None, block_size=32, block_bytes=20)
def q4_0_f32(blocks: Bytes) -> Floats:
    """w = d * (q - 8)

    byte   0        4                      20
           | d f32  | qs: as in Q4_0       |
    """
    q = nibbles(blocks[:, 4:20]).view(np.int8)
    q -= 8
    weights = q.astype(np.float32)
    weights *= single(blocks, 0)
    return weights


@block_format("Q4_1_F32", ggml_type=None, block_size=32, block_bytes=24)
def q4_1_f32(blocks: Bytes) -> Floats:
    """w = d * q + m

    byte   0        4        8                      24
           | d f32  | m f32  | qs: as in Q4_0       |
    """
    weights = nibbles(blocks[:, 8:24]).astype(np.float32)
    weights *= single(blocks, 0)
    weights += single(blocks, 4)
    return weights


@block_format("Q8_0_F32", ggml_type=None, block_size=32, block_bytes=36)
def q8_0_f32(blocks: Bytes) -> Floats:
    """w = d * q

    byte   0        4                      36
           | d f32  | q: 32 int8           |
    """
    weights = blocks[:, 4:36].view(np.int8).astype(np.float32)
    weights *= single(blocks, 0)
    return weights


def single(blocks: Bytes, at: int) -> Floats:
    """float32[n, 1]: the float32 at byte `at` of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 4]).view("<f4").astype(np.float32, copy=False)
