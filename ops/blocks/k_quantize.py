"""Floats to Q4_K, Q5_K and Q6_K, searching for a small squared error. `k_quants.py` draws the blocks.

A weight becomes an integer level q, and q becomes `scale * q - minimum` again. Which scale and minimum are best depends on the
levels, and the levels on them. So there are two searches, both over all blocks at once:

1. With real numbers, for each sub-block alone. Lay a grid of levels over its weights and round each weight to its level. For
   these levels the method of least squares gives the best scale and minimum. Try several grids, keep the best.
2. With the integers that are stored. The largest scale and the largest minimum of a block decide d and dmin. Each scale and
   minimum is rounded to a multiple of them. Then this multiple and its neighbours are tried, and the true error decides.

Arrays are [weights of a sub-block, sub-blocks] here: a sum over each sub-block then is a sum of long rows, which is fast.
docs/quantising.md derives the formulas and compares with llama.cpp, whose `quantize_row_q4_K_ref` has the first search only,
with more grids, and with an error that counts large weights more.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block import Bytes, Floats
from .legacy_quantize import half_bytes, inverse, joined, largest

# Grids to try: how many steps more lie between the least weight and the largest one than between the first level and the last.
WIDTHS = (-1.0, -0.7, -0.4, -0.1, 0.2, 0.5)
PLACES = (0.0, 0.5)  # steps from the first level to the least weight: 0.5 puts all weights near it on one level, not on two
SIGNED_WIDTHS = (-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5)  # of Q6_K: the same between 0 and the largest magnitude
NEIGHBOURS = (-1, 0, 1)
LARGEST_HALF = 65504  # float16


def q4_k(blocks: Floats) -> Bytes:
    d, scales, dmin, mins, q = levels_and_minimum(blocks, highest=15)
    return joined(half_bytes(d), half_bytes(dmin), six_bits(scales, mins), packed(q, run=32, bits=4))


def q5_k(blocks: Floats) -> Bytes:
    d, scales, dmin, mins, q = levels_and_minimum(blocks, highest=31)
    high, low = packed(q >> 4, run=32, bits=1), packed(q & 15, run=32, bits=4)
    return joined(half_bytes(d), half_bytes(dmin), six_bits(scales, mins), high, low)


def q6_k(blocks: Floats) -> Bytes:
    d, scales, q = signed_levels(blocks)
    low, high = packed(q & 15, run=64, bits=4), packed(q >> 4, run=32, bits=2)
    return joined(low, high, scales.view(np.uint8), half_bytes(d))


def levels_and_minimum(blocks: Floats, highest: int) -> tuple[Floats, Bytes, Floats, Bytes, Bytes]:
    """w = d * scale * q - dmin * min, sub-blocks of 32

    d and dmin float32[n, 1], rounded to float16 already; scales and mins uint8[n, 8] to 63; q uint8[n, 256] to `highest`.
    """
    x = columns(blocks, 32, LARGEST_HALF * 63 * highest)
    scale, minimum = fitted_line(x, highest)
    d = shared(scale.reshape(-1, 8).max(axis=1, keepdims=True) / 63, blocks)
    dmin = shared(minimum.reshape(-1, 8).max(axis=1, keepdims=True) / 63, blocks)
    step, step_of_min = np.repeat(d, 8), np.repeat(dmin, 8)
    first_scale, first_min = np.rint(scale * inverse(step)), np.rint(minimum * inverse(step_of_min))
    best_scale, best_min, least = first_scale, first_min, np.full_like(scale, np.inf)
    for of_min, of_scale in product(NEIGHBOURS, NEIGHBOURS):
        s, m = np.clip(first_scale + of_scale, 0, 63), np.clip(first_min + of_min, 0, 63)
        error = squared_error(x + step_of_min * m, step * s, 0, highest)
        best_scale, best_min = np.where(error < least, s, best_scale), np.where(error < least, m, best_min)
        least = np.fmin(error, least)
    q = nearest_levels(x + step_of_min * best_min, step * best_scale, 0, highest)
    scales, mins = best_scale.reshape(-1, 8).astype(np.uint8), best_min.reshape(-1, 8).astype(np.uint8)
    return d, scales, dmin, mins, q.T.astype(np.uint8).reshape(-1, 256)


def fitted_line(x: Floats, highest: int) -> tuple[Floats, Floats]:
    """float32[sub-blocks] each: scale and minimum, both 0 or more, for weights x that become scale * q - minimum."""
    n = len(x)
    mean = x.mean(axis=0)
    centred = x - mean
    least = np.minimum(x.min(axis=0), 0) - mean
    per_weight = inverse(centred.max(axis=0) - least)
    best_scale, best_minimum, most = np.zeros_like(mean), -least - mean, np.full_like(mean, -np.inf)
    for width, place in product(WIDTHS, PLACES):
        steps = (highest + width) * per_weight  # grid steps per unit of weight
        q = centred * steps
        q += np.float32(place) - least * steps
        np.rint(q, out=q)
        np.minimum(q, np.float32(highest), out=q)
        sum_q, sum_qq, covariance = q.sum(axis=0), dot(q, q), dot(q, centred)
        # Least squares. `explained` is how much smaller the squared error is than that of the mean alone.
        scale = covariance * inverse(sum_qq - sum_q * sum_q / n)
        minimum = scale * sum_q / n - mean
        explained = scale * covariance
        # A minimum below 0 cannot be stored: it is 0 then, and the line goes through the origin.
        origin_scale = (covariance + mean * sum_q) * inverse(sum_qq)
        origin_explained = origin_scale * (covariance + mean * sum_q) - n * mean * mean
        scale = np.where(minimum < 0, origin_scale, scale)
        explained = np.where(minimum < 0, origin_explained, explained)
        better = explained > most
        best_scale = np.where(better, scale, best_scale)
        best_minimum = np.where(better, np.maximum(minimum, 0), best_minimum)
        most = np.fmax(explained, most)
    return best_scale, best_minimum


def signed_levels(blocks: Floats) -> tuple[Floats, Bytes, Bytes]:
    """w = d * scale * (q - 32), sub-blocks of 16

    d float32[n, 1], rounded to float16 already; scales int8[n, 16]; q uint8[n, 256] to 63.
    """
    x = columns(blocks, 16, LARGEST_HALF * 128 * 32)
    scale = fitted_scale(x)
    d = shared(largest(scale.reshape(-1, 16)) / -128, blocks)  # as in Q4_0: -128 is the integer without a twin
    step = np.repeat(d, 16)
    first = np.rint(scale * inverse(step))
    best, least = first, np.full_like(scale, np.inf)
    for of_scale in NEIGHBOURS:
        s = np.clip(first + of_scale, -128, 127)
        error = squared_error(x, step * s, -32, 31)
        best, least = np.where(error < least, s, best), np.fmin(error, least)
    q = nearest_levels(x, step * best, -32, 31)
    q += 32
    return d, best.reshape(-1, 16).astype(np.int8), q.T.astype(np.uint8).reshape(-1, 256)


def fitted_scale(x: Floats) -> Floats:
    """float32[sub-blocks]: the scale, of either sign, for weights x that become scale * q with q in -32..31."""
    per_weight = inverse(largest(x.T)[:, 0])
    best, most = np.zeros_like(per_weight), np.full_like(per_weight, -np.inf)
    for width in SIGNED_WIDTHS:
        q = x * (np.float32(-32 - width) * per_weight)
        np.rint(q, out=q)
        np.clip(q, -32, 31, out=q)
        product_sum = dot(q, x)
        scale = product_sum * inverse(dot(q, q))  # least squares
        explained = scale * product_sum
        best, most = np.where(explained > most, scale, best), np.fmax(explained, most)
    return best


def columns(blocks: Floats, size: int, limit: float) -> Floats:
    """float32[size, sub-blocks]: a column for each sub-block. Beyond `limit` is what no block can hold: it counts as that."""
    x = np.ascontiguousarray(blocks.reshape(-1, size).T)
    return np.clip(x, np.float32(-limit), np.float32(limit), out=x)


def squared_error(x: Floats, step: Floats, lowest: int, highest: int) -> Floats:
    """float32[sub-blocks]: of the nearest levels."""
    q = nearest_levels(x, step, lowest, highest)
    q *= step
    q -= x
    return dot(q, q)


def nearest_levels(x: Floats, step: Floats, lowest: int, highest: int) -> Floats:
    q = x * inverse(step)
    np.rint(q, out=q)
    return np.clip(q, np.float32(lowest), np.float32(highest), out=q)


def dot(a: Floats, b: Floats) -> Floats:
    """The sum of products over each column."""
    product_sums: Floats = np.einsum("ij,ij->j", a, b)
    return product_sums


def shared(d: NDArray[Any], blocks: Floats) -> Floats:
    """d rounded to float16, its largest number at most; NaN for a block with an infinite weight or NaN: all its weights are."""
    rounded: Floats = np.clip(d, -LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32)
    rounded[~np.isfinite(blocks).all(axis=1)] = np.nan
    return rounded


def packed(q: NDArray[Any], run: int, bits: int) -> Bytes:
    """The way back from `k_quants.planes`: uint8[n, k], each below 2**bits, to uint8[n, k * bits // 8]."""
    n, k = q.shape
    fields = q.reshape(n, -1, 8 // bits, run) << np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    gathered: Bytes = np.bitwise_or.reduce(fields, axis=2)
    return gathered.reshape(n, k * bits // 8)


def six_bits(scales: Bytes, mins: Bytes) -> Bytes:
    """The way back from `k_quants.scales_and_mins`: twice uint8[n, 8] to uint8[n, 12]."""
    first = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    second = mins[:, :4] | (mins[:, 4:] >> 4 << 6)
    third = (scales[:, 4:] & 15) | (mins[:, 4:] << 4)
    return joined(first, second, third)
