"""Products that round x to 8 bits: how far from the formula, which does not, they may be.

A backend that says so (`Backend.rounding`) takes x in blocks, each number as a multiple of d, its block's largest number / 127.
So a number is off by d/2 at most, and by d^2 / 12 in the mean square, as whatever is rounded to steps of d. What comes of that:

    y = sum over i of w_i * x_i     is off by at most    sum |w_i| * d_i / 2        each element
                                    in the mean square   sum w_i^2 * d_i^2 / 12     all elements together

This comes on top of float32's own roundings. For numbers like those of a model it is 0.5% of y; a wrong scale, or a sum
that was left out, is more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ops.activation import silu
from ops.blocks import FORMATS
from ops.matmul import matmul
from ops.norm import rmsnorm
from ops.op import Op, Operand
from ops.tensor import Tensor

from ..base import Backend
from .blocks import weight

Doubles = NDArray[Any]
Off = tuple[Doubles, Doubles]  # of each element: what it may be off, and the mean square of that
# The mean square of a few roundings is not yet their expectation: (d/2)^2 is three times d^2 / 12, and N rows scatter by
# sqrt(2/N) around their mean, a single one more than that. Rows, since all elements of one have the same x: where the weights
# of a block are nearly equal, they are off together.
SCATTER = 3.0

_precise: WeakKeyDictionary[Backend, Backend | None] = WeakKeyDictionary()


def precise(backend: Backend) -> Backend:
    """The same backend with x in float32, for what is to be seen without this rounding; itself, if it rounds nothing."""
    if backend not in _precise:
        rng = np.random.default_rng(0)
        weights = [weight(rng, "w", (16, 256), name, "usual") for name in FORMATS]
        rounds = any(backend.rounding(matmul, w) for w in weights)
        _precise[backend] = type(backend)(replace(backend.options, precise=True)) if rounds else None
    return _precise[backend] or backend


def rounded_by(backend: Backend, op: Op, operands: Sequence[Any]) -> dict[str, int]:
    """Of each weight that meets a rounded x: how many numbers of it are rounded together."""
    weights = {o.name: x for o, x in zip(op.inputs, operands, strict=True) if o.dtype == "weight" and isinstance(x, Tensor)}
    blocks = {name: backend.rounding(op, tensor) for name, tensor in weights.items()}
    return {name: block for name, block in blocks.items() if block}


def off(op: Op, output: Operand, blocks: dict[str, int], doubles: Sequence[Doubles], attrs: dict[str, Any]) -> Off | None:
    """What rounding x may do to an output of a product. doubles: the operands in float64; None: nothing."""
    given = dict(zip((o.name for o in op.inputs), doubles, strict=True))
    kind = PRODUCTS.get(op.name)
    return kind(given, output.name, blocks, attrs) if kind and blocks else None


def limit(rows: int) -> float:
    """How many times the mean square of so many rows may be what it is expected to be."""
    return SCATTER * (1 + 6 * math.sqrt(2 / rows) + 30 / rows)


def _product(x: Doubles, w: Doubles, block: int) -> Off:
    """block: 0 where x is not rounded for this weight."""
    if not block:
        return np.zeros((len(x), len(w))), np.zeros((len(x), len(w)))
    largest = np.abs(x).reshape(len(x), -1, block).max(axis=-1)
    d = np.repeat(largest / 127, block, axis=1)
    return d / 2 @ np.abs(w).T, d**2 / 12 @ np.square(w).T


def _plain(given: dict[str, Doubles], output: str, blocks: dict[str, int], attrs: dict[str, Any]) -> Off:
    """Of matmul, matmul_add, and of q, k and v with their weights."""
    name = f"{output}_weight" if f"{output}_weight" in given else "weight"
    x = rmsnorm(given["x"], given["norm"], **attrs) if "norm" in given else given["x"]
    return _product(x, given[name], blocks.get(name, 0))


def _gated(given: dict[str, Doubles], output: str, blocks: dict[str, int], attrs: dict[str, Any]) -> Off:
    """silu is nowhere steeper than 1.1: what both products are off, each times what it is multiplied by, and both together."""
    h = rmsnorm(given["x"], given["norm"], **attrs)
    gate, up = (h @ given[name].T for name in ("gate", "up"))
    (g, g2), (u, u2) = (_product(h, given[name], blocks.get(name, 0)) for name in ("gate", "up"))
    bend = np.abs(silu(gate))
    return 1.1 * g * np.abs(up) + bend * u + 1.1 * g * u, 1.21 * g2 * np.square(up) + np.square(bend) * u2 + 1.21 * g2 * u2


PRODUCTS: dict[str, Callable[[dict[str, Doubles], str, dict[str, int], dict[str, Any]], Off]] = {
    **dict.fromkeys(("matmul", "matmul_add", "qkv", "norm_matmul", "norm_qkv"), _plain),
    "norm_swiglu": _gated,
}
