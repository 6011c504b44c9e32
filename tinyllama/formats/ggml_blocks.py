"""The types of tensors in files of spring 2023, and the blocks that have to be put in another order.

The numbers of the types stayed, the blocks behind them changed twice, with ggjt's version:

    before v2   Q4 and Q5: byte j holds weights 2j (low nibble) and 2j + 1 (high)
    v2          Q4 and Q5: byte j holds weights j (low nibble) and j + 16 (high), as today        llama.cpp's pull request 1405
    v3          the scales of Q4_0, Q4_1 and Q8_0: float16, as today; before, float32             llama.cpp's pull request 1508

The fifth bits of Q5 always lay as today: bit j belongs to weight j. Q2_K to Q6_K came with v3 and are today's. Q4_2 and Q4_3
went with v2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ops.blocks import BY_GGML_TYPE, FORMATS, BlockFormat
from ops.blocks.ggjt import WITH_FLOAT32_SCALES
from ops.errors import FormatError

SINCE_ALWAYS = (0, 1, 6, 7)  # F32, F16, Q5_0, Q5_1
SCALES_CHANGED = (2, 3, 8)  # Q4_0, Q4_1, Q8_0
OF_FOUR_AND_FIVE_BITS = (2, 3, 6, 7)
K_QUANTS = (10, 11, 12, 13, 14)
GONE = {4: "Q4_2", 5: "Q4_3"}
N_NIBBLE_BYTES = 16  # 32 weights of 4 bits: the end of a Q4 or Q5 block


@dataclass(frozen=True)
class Stored:
    """How a tensor lies in the file: as blocks of `format`; `in_pairs`: with the nibbles in the order of before ggjt v2."""

    format: BlockFormat
    in_pairs: bool


def stored_as(number: int, ggjt_version: int, path: Path, tensor: str) -> Stored:
    """What a type's number means in a file of this version (0: before ggjt). FormatError if nothing that is read."""
    if number in GONE and ggjt_version < 2:
        raise FormatError(
            f"{path}: tensor {tensor!r} is {GONE[number]}, which existed for some weeks of spring 2023 and is not read; "
            "quantise the f16 file of this model again, to Q4_0, Q5_0 or Q8_0"
        )
    if number in SCALES_CHANGED and ggjt_version < 3:
        format = FORMATS[WITH_FLOAT32_SCALES[BY_GGML_TYPE[number].name]]
    elif number in SINCE_ALWAYS or (ggjt_version == 3 and number in (*SCALES_CHANGED, *K_QUANTS)):
        format = BY_GGML_TYPE[number]
    else:
        raise FormatError(f"{path}: tensor {tensor!r} has type {number}, which files of this version lack; it is damaged")
    return Stored(format, in_pairs=ggjt_version < 2 and number in OF_FOUR_AND_FIVE_BITS)


def halves_from_pairs(rows: NDArray[np.uint8], format: BlockFormat) -> NDArray[np.uint8]:
    """Rows of Q4 or Q5 blocks with their nibbles in today's order: a copy, of the same shape; no bit is lost."""
    blocks = rows.reshape(-1, format.block_bytes).copy()
    front, back = np.split(blocks[:, -N_NIBBLE_BYTES:].copy(), 2, axis=1)  # weights 0 to 15, weights 16 to 31
    blocks[:, -N_NIBBLE_BYTES::2] = (front & 15) | (back << 4)  # bytes 0, 2 ...: weights 0 and 16, 2 and 18 ...
    blocks[:, 1 - N_NIBBLE_BYTES :: 2] = (front >> 4) | (back & 0xF0)  # bytes 1, 3 ...: weights 1 and 17, 3 and 19 ...
    made: NDArray[np.uint8] = blocks.reshape(rows.shape)
    return made
