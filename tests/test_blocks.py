"""Block formats, bit for bit against the `gguf` package (llama.cpp's own Python implementation)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.blocks import BY_GGML_TYPE, FORMATS, BlockFormat
from ops.tensor import Tensor

HALVES_AT = {  # byte positions of the float16 scales and minima, from ggml-common.h
    "F16": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)


def random_blocks(fmt: BlockFormat, n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, fmt.block_bytes), dtype=np.uint8)


def expected(fmt: BlockFormat, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # infinite scales times zero
        values = gguf.dequantize(rows, gguf.GGMLQuantizationType(fmt.ggml_type))
    return np.ascontiguousarray(values)


def assert_same_bits(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Equal as bits, so -0 is not 0; but any NaN equals any other, since IEEE 754 leaves a result's payload open."""
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    same = (found.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(found) & np.isnan(wanted))
    assert same.all(), f"{np.count_nonzero(~same)} of {same.size} differ, the first at {np.argwhere(~same)[0]}"


def dequantize(fmt: BlockFormat, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return fmt.dequantize(blocks)


def test_formats_are_ggmls() -> None:
    assert set(FORMATS) == {
        "F32",
        "F16",
        "BF16",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
    }
    for name, fmt in FORMATS.items():
        ggml_type = gguf.GGMLQuantizationType[name]
        assert (fmt.block_size, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[ggml_type]
        assert BY_GGML_TYPE[ggml_type.value] is fmt


@every_format
@given(n=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_random_bytes(fmt: BlockFormat, n: int, seed: int) -> None:
    blocks = random_blocks(fmt, n, seed)
    assert_same_bits(dequantize(fmt, blocks), expected(fmt, blocks))


@pytest.mark.parametrize("name", HALVES_AT)
def test_every_bit_pattern_of_the_scales(name: str) -> None:
    """Subnormal, huge, infinite and NaN scales included: all 65,536, each with weights of its own."""
    fmt, rng = FORMATS[name], np.random.default_rng(16)
    orders = {at: rng.permutation(2**16).astype("<u2") for at in HALVES_AT[name]}  # scale and minimum apart
    for piece in np.split(np.arange(2**16), 16):
        blocks = random_blocks(fmt, len(piece), int(piece[0]))
        for at, order in orders.items():
            blocks[:, at : at + 2] = order[piece, None].view(np.uint8)
        assert_same_bits(dequantize(fmt, blocks), expected(fmt, blocks))


@every_format
@pytest.mark.parametrize("rows", [slice(None), slice(3, 9), slice(0, 0), slice(10, None, 3), np.array([7, 0, 7])], ids=str)
def test_rows_of_a_tensor(fmt: BlockFormat, rows: slice | NDArray[np.int64]) -> None:
    n_rows, n_blocks = 13, 3
    data = random_blocks(fmt, n_rows * n_blocks, 1).reshape(n_rows, -1)
    data.flags.writeable = False  # as a mapped file is
    tensor = Tensor("w", (n_rows, n_blocks * fmt.block_size), fmt, data)
    with np.errstate(all="ignore"):
        found = tensor.dequantize(rows)
    assert_same_bits(found, expected(fmt, data)[rows])


@every_format
def test_threads(fmt: BlockFormat) -> None:
    """Slices dequantised at the same time do not disturb each other."""
    blocks = random_blocks(fmt, 4096, 2)
    with ThreadPoolExecutor(4) as pool:
        pieces = list(pool.map(lambda part: dequantize(fmt, part), np.split(blocks, 32)))
    assert_same_bits(np.concatenate(pieces), expected(fmt, blocks))
