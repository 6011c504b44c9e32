"""Wrong in reading a block format: nibbles, high bits, scales, minima."""

from __future__ import annotations

import numpy as np

import ops
from backends.base import kernel
from backends.numpy import Numpy
from ops.tensor import Tensor

from .mutant import wrong


class Misread(Numpy):
    """Reads weights as if `misread` had been done to their blocks, uint8[blocks in a row, block_bytes]."""

    format = ""

    def misread(self, blocks):
        pass

    def weight(self, tensor):
        if tensor.format.name != self.format:
            return tensor.dequantize()
        data = tensor.data.copy()
        for row in data.reshape(len(data), -1, tensor.format.block_bytes):
            self.misread(row)
        return Tensor(tensor.name, tensor.shape, tensor.format, data).dequantize()

    def warm_up(self, weights):
        pass

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        return x @ weight.T


def reads(format_name: str, misread, told: str) -> None:
    """Declare a backend that misreads one format."""
    name = told.title().replace(" ", "").replace("'", "").replace("-", "")
    members = {"format": format_name, "misread": lambda self, blocks: misread(blocks), "__doc__": f"{format_name}: {told}."}
    wrong("matmul", "embedding", dtype=format_name)(type(f"{format_name}{name}", (Misread,), members))


def _swap_nibbles(part):
    part[:] = part >> 4 | part << 4


def _scale_of_the_next(blocks):
    blocks[:, :2] = np.roll(blocks[:, :2], -1, axis=0)


def _flush(blocks, at):
    half = blocks[:, at : at + 2].copy().view("<f2")
    blocks[:, at : at + 2] = np.where(abs(half) < 6.1e-5, np.float16(0), half).view(np.uint8)


def _through_half(blocks, at):
    blocks[:, at : at + 4] = blocks[:, at : at + 4].copy().view("<f4").astype("<f2").astype("<f4").view(np.uint8)


def _neighbours_in_a_byte(part):
    q = np.stack([part & 15, part >> 4], axis=-1).reshape(len(part), 32)
    part[:] = q[:, :16] | q[:, 16:] << 4


def _minimum_first(blocks):
    blocks[:, :8] = blocks[:, [4, 5, 6, 7, 0, 1, 2, 3]]


def _as_q8_0(blocks):
    narrow = blocks.reshape(-1)[: 34 * len(blocks)].reshape(-1, 34).copy()
    with np.errstate(all="ignore"):
        blocks[:, :4] = narrow[:, :2].copy().view("<f2").astype("<f4").view(np.uint8)
    blocks[:, 4:] = narrow[:, 2:]


def _high_bits_swapped(blocks):
    blocks[:, 4:8] = blocks[:, [6, 7, 4, 5]]


def _no_lowest(blocks):
    q = blocks[:, 2:34]
    q[q == 128] = 129


def _last_block(blocks):
    if len(blocks) % 2 and len(blocks) > 1:
        blocks[-1, :2] = 0


reads("Q4_0", lambda b: _swap_nibbles(b[:, 2:18]), "nibbles swapped")
reads("Q4_0", _scale_of_the_next, "scale of the next block")
reads("Q4_0", lambda b: _flush(b, 0), "denormal scales are zero")
reads("Q4_0", _last_block, "last of an odd number of blocks left out")
reads("Q4_1", lambda b: b[:, 2:4].fill(0), "minimum left out")
reads("Q5_0", lambda b: b[:, 4:6].fill(0), "high bits of the second half left out")
reads("Q5_1", _high_bits_swapped, "high bits of the halves swapped")
reads("Q8_0", lambda b: np.bitwise_and(b[:, 1], 127, out=b[:, 1]), "scale without its sign")
reads("Q8_0", _no_lowest, "never less than -127")
reads("Q4_0_F32", lambda b: _neighbours_in_a_byte(b[:, 4:20]), "neighbours in a byte as before May 2023")
reads("Q4_0_F32", lambda b: _through_half(b, 0), "scale through float16")
reads("Q4_0_F32", lambda b: b[:, :2].fill(0), "upper half of the scale only")
reads("Q4_1_F32", lambda b: _through_half(b, 4), "minimum through float16")
reads("Q4_1_F32", _minimum_first, "minimum before the scale")
reads("Q8_0_F32", _as_q8_0, "scale taken for a float16")
reads("Q2_K", lambda b: _swap_nibbles(b[:, :16]), "scales and minima swapped")
reads("Q3_K", lambda b: b[:, 104:108].fill(170), "high bits of scales left out")
reads("Q3_K", lambda b: np.invert(b[:, :32], out=b[:, :32]), "third bit inverted")
reads("Q4_K", lambda b: b[:, 2:4].fill(0), "minima left out")
reads("Q4_K", lambda b: np.bitwise_and(b[:, 4:12], 63, out=b[:, 4:12]), "high bits of the last scales left out")
reads("Q5_K", lambda b: np.bitwise_and(b[:, 16:48], 0x7F, out=b[:, 16:48]), "fifth bit of the last group left out")
reads("Q6_K", lambda b: np.bitwise_and(b[:, 192:208], 127, out=b[:, 192:208]), "sub-scales without their sign")
reads("Q6_K", lambda b: b[:, 128:192].fill(170), "high bits left out")
reads("F16", lambda b: _flush(b, 0), "denormals are zero")
reads("BF16", lambda b: np.bitwise_and(b[:, 0], 0xFE, out=b[:, 0]), "lowest bit left out")
reads("F32", lambda b: b[:, 0].fill(0), "lowest byte left out")
