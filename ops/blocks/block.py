"""What a block format is: how a few weights in a row are packed into a few bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

FORMATS: dict[str, BlockFormat] = {}  # by name, such as "Q4_0"


@dataclass(frozen=True, eq=False)
class BlockFormat:
    """`block_size` weights in `block_bytes` bytes. `dequantize` takes uint8[n, block_bytes] to float32[n, block_size].

    `ggml_type` is the number that GGUF files give the format (ggml's `enum ggml_type`); None for one that GGUF does not know.
    """

    name: str
    ggml_type: int | None
    block_size: int
    block_bytes: int
    dequantize: Callable[[Bytes], Floats]

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of n weights, n a multiple of block_size."""
        return n // self.block_size * self.block_bytes

    def __repr__(self) -> str:
        return self.name


def block_format(
    name: str, *, ggml_type: int | None, block_size: int, block_bytes: int
) -> Callable[[Callable[[Bytes], Floats]], BlockFormat]:
    """Declare a format: a decorator above its dequantize function."""

    def declare(dequantize: Callable[[Bytes], Floats]) -> BlockFormat:
        FORMATS[name] = made = BlockFormat(name, ggml_type, block_size, block_bytes, dequantize)
        return made

    return declare
