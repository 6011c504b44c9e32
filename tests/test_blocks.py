"""Block formats, bit for bit against the `gguf` package (llama.cpp's own Python implementation).

It does not know the blocks of before ggjt v3, with float32 scales: these are decoded here once more, weight by weight.
"""

from __future__ import annotations

import struct
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
# The blocks of ggml.c before llama.cpp's pull request 1508 (May 2023), whose files are ggjt v2; QK4_0, QK4_1 and QK8_0 are 32.
#   typedef struct { float d; uint8_t qs[QK4_0 / 2]; } block_q4_0;
#   typedef struct { float d; float m; uint8_t qs[QK4_1 / 2]; } block_q4_1;
#   typedef struct { float d; int8_t qs[QK8_0]; } block_q8_0;
SINGLES = {"Q4_0_F32": "<f16B", "Q4_1_F32": "<ff16B", "Q8_0_F32": "<f32b"}
every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)


def random_blocks(fmt: BlockFormat, n: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, fmt.block_bytes), dtype=np.uint8)


def expected(fmt: BlockFormat, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    if fmt.name in SINGLES:
        decoded = [decode(fmt.name, block.tobytes()) for block in rows.reshape(-1, fmt.block_bytes)]
        return np.array(decoded, np.float32).reshape(len(rows), -1)
    with np.errstate(all="ignore"):  # infinite scales times zero
        values = gguf.dequantize(rows, gguf.GGMLQuantizationType(fmt.ggml_type))
    return np.ascontiguousarray(values)


def decode(name: str, block: bytes) -> list[np.float32]:
    """As dequantize_row_q4_0, _q4_1 and _q8_0 of then: two weights of byte j, j and j + 16, the low half first."""
    d, *fields = struct.unpack(SINGLES[name], block)
    scale, qs = np.float32(d), fields[-32:] if name == "Q8_0_F32" else fields[-16:]
    with np.errstate(all="ignore"):
        if name == "Q8_0_F32":
            return [scale * np.float32(q) for q in qs]
        q = [byte & 15 for byte in qs] + [byte >> 4 for byte in qs]
        if name == "Q4_0_F32":
            return [np.float32(x - 8) * scale for x in q]
        return [np.float32(x) * scale + np.float32(fields[0]) for x in q]


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
    assert set(FORMATS) - set(SINGLES) == {
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
        if name in SINGLES:
            assert (fmt.ggml_type, fmt.block_size, fmt.block_bytes) == (None, 32, struct.calcsize(SINGLES[name]))
            continue
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


@pytest.mark.parametrize("name", SINGLES)
def test_float32_scales_of_every_size(name: str) -> None:
    """All exponents of a float32, zero, subnormal, infinite and NaN among them, with either sign."""
    fmt, rng = FORMATS[name], np.random.default_rng(23)
    blocks = random_blocks(fmt, 512, 4)
    for at in (0, 4)[: SINGLES[name].count("f")]:
        mantissas = np.where(rng.integers(0, 2, 512), rng.integers(0, 1 << 23, 512), 0)
        singles = rng.permutation(512).astype("<u4") << 23 | mantissas.astype("<u4")
        blocks[:, at : at + 4] = singles[:, None].view(np.uint8)
    assert_same_bits(dequantize(fmt, blocks), expected(fmt, blocks))


def test_a_float32_scale_is_a_float16_one_if_it_fits() -> None:
    """The same quants behind a scale of either width: what the `gguf` package makes of the block of today."""
    for today, before, n_scales in (("Q4_0", "Q4_0_F32", 1), ("Q4_1", "Q4_1_F32", 2), ("Q8_0", "Q8_0_F32", 1)):
        blocks = random_blocks(FORMATS[today], 64, 5)
        halves = blocks[:, : 2 * n_scales].view("<f2")
        halves[~np.isfinite(halves)] = 1
        wide = np.concatenate([halves.astype("<f4").view(np.uint8), blocks[:, 2 * n_scales :]], axis=1)
        assert_same_bits(dequantize(FORMATS[before], wide), expected(FORMATS[today], blocks))


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
