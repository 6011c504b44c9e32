"""numpy: BLAS does the products, array operations the rest, a block of rows at a time on all cores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import ops
from ops.tensor import Tensor

from ..base import Backend, Options, kernel
from .attention import attention
from .threads import Threads
from .weights import Weights

Array = NDArray[np.float32]


# Here the formula is already what numpy does best.
FORMULA_IS_BEST = (
    ops.embedding, ops.get_rows, ops.add_bias, ops.add, ops.mul, ops.split_heads, ops.merge_heads, ops.kv_write,
    ops.silu, ops.attention_scores, ops.causal_mask, ops.softmax, ops.attention_mix,
)  # fmt: skip


class Numpy(Backend):
    name: ClassVar[str] = "numpy"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.kernels |= {op.name: op.formula for op in FORMULA_IS_BEST}
        self.threads = Threads(self.n_threads, limit_blas=self.options.n_threads is not None)
        self.weights = Weights(self.options.weights_memory, self.threads)
        self._turns: tuple[bytes, bytes, Array, Array] | None = None

    def warm_up(self, weights: Iterable[Tensor]) -> None:
        self.weights.warm_up(weights)

    def describe(self) -> str:
        return f"numpy {np.__version__}, {self.threads.n} threads, weights in float32"

    # Products

    @kernel(ops.matmul)
    def matmul(self, x: Array, weight: Tensor) -> Array:
        dense = self.weights.get(weight)
        if dense is None:
            return self.weights.multiply(x, weight)
        y: Array = x @ dense.T
        return y

    @kernel(ops.attention)
    def attention(self, q: Array, keys: Array, values: Array, positions: NDArray[Any], *, scale: float) -> Array:
        return attention(q, keys, values, positions, scale, self.threads)

    # Row by row

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x: Array, weight: Array, *, eps: float) -> Array:
        y = np.empty_like(x)

        def norm(rows: slice) -> None:
            part = x[rows]
            mean_square = np.einsum("tn,tn->t", part, part) / np.float32(x.shape[1])
            np.multiply(part, 1 / np.sqrt(mean_square + np.float32(eps))[:, None], out=y[rows])
            y[rows] *= weight

        self.threads.rows(norm, len(x), x.itemsize * x.shape[1])
        return y

    @kernel(ops.swiglu)
    def swiglu(self, gate: Array, up: Array) -> Array:
        y = np.empty_like(gate)

        def activate(rows: slice) -> None:
            part = y[rows]
            np.negative(gate[rows], out=part)
            np.exp(part, out=part)
            part += 1
            np.divide(gate[rows], part, out=part)
            part *= up[rows]

        self.threads.rows(activate, len(y), y.itemsize * y.shape[1])
        return y

    @kernel(ops.rope)
    def rope(self, x: Array, positions: NDArray[Any], freqs: Array, *, neox: bool = False) -> Array:
        cos, sin = self._turn(positions, freqs)
        r = len(freqs)
        first, second = (slice(r), slice(r, 2 * r)) if neox else (slice(0, 2 * r, 2), slice(1, 2 * r, 2))
        a, b = x[..., first], x[..., second]
        y = x.copy() if 2 * r < x.shape[-1] else np.empty_like(x)
        np.subtract(a * cos, b * sin, out=y[..., first])
        np.add(a * sin, b * cos, out=y[..., second])
        return y

    def _turn(self, positions: NDArray[Any], freqs: Array) -> tuple[Array, Array]:
        """cos and sin of positions[t] * freqs[i], both [T, 1, r]: the same for every layer of a step, so made once."""
        at, of = positions.tobytes(), freqs.tobytes()
        turns = self._turns
        if turns is None or turns[0] != at or turns[1] != of:
            angle = (positions[:, None] * freqs.astype(np.float64))[:, None, :]
            turns = self._turns = (at, of, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
        return turns[2:]
