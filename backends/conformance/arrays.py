"""Arrays as a backend may meet them: values of many shapes of distribution, and every way to lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

VALUES = ("normal", "positive", "uneven rows", "outlier", "zeros")
MASKED = "masked"  # scores with -inf among them, for what takes scores
SHIFTED = "shifted"  # rows far from zero beside their spread, for what takes their mean away
LAYOUTS = ("plain", "transposed", "strided", "reversed", "offset", "read-only")
LARGEST_HALF = 46000.0  # what goes to a float16 cache stays below its 65504, also if a pair of such numbers is turned


def drawn(rng: np.random.Generator, shape: tuple[int, ...], pattern: str, magnitude: float) -> Array:
    """float32 of this shape; `magnitude` is the standard deviation, before the pattern makes some of it larger or smaller."""
    x = rng.standard_normal(shape) * magnitude
    if pattern == "positive":  # sums that do not cancel
        x = np.abs(x)
    elif pattern == "uneven rows":  # a wrong small row must not hide behind a large one
        x *= 10.0 ** rng.uniform(-4, 2, (*shape[:-1], 1))
    elif pattern == "outlier":  # as activations of real models have them
        x[tuple(rng.integers(shape))] *= 1000
    elif pattern == "zeros":  # half of the rows, and half of what is left
        x *= rng.integers(0, 2, shape) * rng.integers(0, 2, (*shape[:-1], 1))
    elif pattern == SHIFTED:
        if x.ndim > 1:  # not what all rows are multiplied by, or what is added to them: it would hide the rest
            x += rng.choice([-1, 1], (*shape[:-1], 1)) * magnitude * 10.0 ** rng.uniform(1, 5, (*shape[:-1], 1))
    elif pattern == MASKED:
        x = np.where(rng.integers(0, 2, shape), x, -np.inf)
        x[..., rng.integers(shape[-1])] = magnitude  # no row without anything to see
    return x.astype(np.float32)


def poisoned(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Places of a cache that nobody has written: reading them must show. NaN, or the largest number."""
    return np.full(shape, (np.nan, np.finfo(dtype).max, -np.finfo(dtype).max)[seed % 3], dtype)


def laid_out(x: Array, layout: str) -> Array:
    """The same values, lying in memory in another way; what lies between them is no number."""
    return _LAYOUTS[layout](x)


def _between(x: Array) -> Any:
    return np.nan if x.dtype.kind == "f" else np.iinfo(x.dtype).max


def _strided(x: Array) -> Array:
    """Every second number of a larger array."""
    larger = np.full((*x.shape[:-1], 2 * x.shape[-1]), _between(x), x.dtype)
    larger[..., ::2] = x
    return larger[..., ::2]


def _offset(x: Array) -> Array:
    """A part of a larger array: rows do not follow each other, and it does not begin where the memory begins."""
    larger = np.full([n + 3 for n in x.shape], _between(x), x.dtype)
    inside = tuple(slice(1, 1 + n) for n in x.shape)
    larger[inside] = x
    return larger[inside]


def _read_only(x: Array) -> Array:
    """As a mapped file is."""
    x = x.copy()
    x.flags.writeable = False
    return x


_LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "plain": np.ascontiguousarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": _strided,
    "reversed": lambda x: np.ascontiguousarray(np.flip(x)).copy()[(slice(None, None, -1),) * x.ndim],
    "offset": _offset,
    "read-only": _read_only,
}
