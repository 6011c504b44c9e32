"""One trial of a law: what it draws, how it applies ops, and when two arrays are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any
from zlib import crc32

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.blocks import FORMATS
from ops.op import Op
from ops.tensor import Tensor

from ..base import Backend
from .apply import Applied, Array, apply
from .arrays import LAYOUTS, laid_out
from .blocks import weight
from .check import Check, Draws, check
from .strategies import HEAD_DIMS, LETTERS, RATIOS, SIZES

GRID = 256  # numbers on a grid of 1/256 below 16 have twelve bits, so that sums of a few of them are exact in float32
WORK = 1 << 17  # numbers in an operand, so that a hundred trials take a second


class Trial:
    """Draws one simple value after the other, numbers and words, so that a report can show them all."""

    def __init__(self, backend: Backend, data: Draws) -> None:
        self.backend = backend
        self._data = data
        self._path = self.one_of("path", ("kernel", "plan"))

    def one_of(self, label: str, choices: Sequence[Any]) -> Any:
        """One of these, the first the simplest."""
        return self._draw(st.sampled_from(choices), label)

    def random(self, label: str) -> np.random.Generator:
        """Numbers at random, others for each label, that a small number brings back."""
        return np.random.default_rng([self._draw(st.integers(0, 2**16), f"seed of {label}"), crc32(label.encode())])

    def array(self, label: str, *shape: int, magnitudes: Sequence[float] = (1.0,), on_grid: bool = False) -> Array:
        """float32 around zero, lying in memory in one way or another; on_grid: multiples of 1/256 below 16."""
        magnitude = self.one_of(f"magnitude of {label}", magnitudes) if len(magnitudes) > 1 else magnitudes[0]
        rng, layout = self.random(label), self.one_of(f"layout of {label}", LAYOUTS)
        grid = rng.integers(-16 * GRID, 16 * GRID, shape, endpoint=True) / GRID if on_grid else None
        values = rng.standard_normal(shape) * magnitude if grid is None else grid
        return laid_out(values.astype(np.float32), layout)

    def rows(self) -> tuple[int, int]:
        """T and n: a size for the tokens of a step, and one for each token's row."""
        return self.one_of("T", LETTERS["T"]), self.one_of("n", SIZES)

    def heads(self, rows: int) -> tuple[int, int, int]:
        """h, k, d: query heads, the key heads they share, their size, for so many rows of them."""
        k, ratio = self.one_of("k", LETTERS["k"]), self.one_of("h / k", RATIOS["h"])
        return k * ratio, k, self.one_of("d", [d for d in HEAD_DIMS if rows * k * ratio * d <= WORK] or [2])

    def weight(self, label: str) -> Tensor:
        """A matrix in one of the block formats."""
        name = self.one_of(f"format of {label}", tuple(FORMATS))
        block = FORMATS[name].block_size
        m = self.one_of("m", SIZES)
        n = block * self.one_of(
            "n / block size", [n for n in (SIZES if block == 1 else (1, 2, 3, 5)) if n == 1 or m * n * block <= WORK]
        )
        return weight(self.random(label), label, (m, n), name, self.one_of("scales", ("usual", "mixed", "zero")))

    def apply(self, op: Op, *operands: Array | Tensor, **attrs: Any) -> Array:
        """What the backend makes of this op, by its kernel or through a plan."""
        return self.run(op, *operands, **attrs).output

    def run(self, op: Op, *operands: Array | Tensor, **attrs: Any) -> Applied:
        with np.errstate(all="ignore"):
            applied = apply(self.backend, op, operands, attrs, self._path)
        for output, operand in applied.shared.items():
            assert output in op.views, f"the result of {op.name} lies in the memory of its operand {operand}"
        return applied

    def _draw(self, strategy: st.SearchStrategy[Any], label: str) -> Any:
        return self._data.draw(strategy, label=label)


def law(
    name: str, *ops: str, examples: int | None = None, as_it_is: bool = False
) -> Callable[[Callable[[Trial], None]], Check]:
    """Declare a check that is a law: a decorator above its function, whose docstring states the law and why it holds."""

    def declare(function: Callable[[Trial], None]) -> Check:
        @wraps(function)
        def run(backend: Backend, data: Draws) -> None:
            function(Trial(backend, data))

        return check(name, *ops, examples=examples, as_it_is=as_it_is)(run)

    return declare


# Equal, and nearly so

# float32 rounds by 2^-24 = 6e-8 of a number at most. 1e-6 is room for sixteen roundings that all go the same way, or for the
# 250 of a long sum that go either way. float16's one rounding is 5e-4.
ROUNDED = 1e-6


def assert_close(found: Array, wanted: Array, told: str, *, within: float = ROUNDED, size: Array | None = None) -> None:
    """Two arrays of float32 differ by `within` in root mean square, relative to `size`, and in no element by twenty times more.

    size: the magnitude of what was added up, where the numbers are what was left of larger ones, whose roundings they bear.
    """
    assert found.shape == wanted.shape, f"{told}: shape {found.shape}, expected {wanted.shape}"
    assert found.dtype == np.float32, f"{told}: {found.dtype}, expected float32"
    if not found.size:
        return
    unit = np.broadcast_to(np.abs(np.asarray(wanted if size is None else size, np.float64)), found.shape)
    with np.errstate(all="ignore"):
        error = np.abs(found.astype(np.float64) - wanted)
    error = np.where(found == wanted, 0, np.nan_to_num(error, nan=np.inf, posinf=np.inf))  # inf - inf is nothing
    over = error / (20 * max(within, 1e-30) * (unit + 1e-30))
    at = tuple(map(int, np.unravel_index(over.argmax(), over.shape)))
    rms, limit = np.sqrt(np.square(error).sum()), within * np.sqrt(np.square(unit).sum()) + 1e-30
    right = over[at] <= 1 and rms <= limit
    assert right, f"{told}: at {list(at)} {found[at]:.9g} and {wanted[at]:.9g}"


def assert_same(found: Array, wanted: Array, told: str) -> None:
    """Bit for bit: where nothing is computed nothing is rounded, and where the same is computed twice it is rounded alike."""
    assert found.shape == wanted.shape, f"{told}: shape {found.shape}, expected {wanted.shape}"
    assert found.dtype == wanted.dtype, f"{told}: {found.dtype}, expected {wanted.dtype}"
    bits = f"u{found.itemsize}"
    differ = np.ascontiguousarray(found).view(bits) != np.ascontiguousarray(wanted).view(bits)
    if differ.any():
        at = tuple(map(int, np.argwhere(differ)[0]))
        raise AssertionError(f"{told}: at {list(at)} {found[at]!r} and {wanted[at]!r}; {differ.sum()} of {differ.size} differ")


def weight_of(values: NDArray[Any], name: str = "F32") -> Tensor:
    """These numbers as a weight in one of the float formats."""
    single = np.ascontiguousarray(values, "<f4")
    stored = (single.view("<u4") >> 16).astype("<u2") if name == "BF16" else single.astype({"F32": "<f4", "F16": "<f2"}[name])
    return Tensor("weight", values.shape, FORMATS[name], stored.view(np.uint8))
