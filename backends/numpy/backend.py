"""numpy: BLAS does the products, array operations the rest, a block of rows at a time on all cores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import ops
from ops.tensor import Tensor

from ..base import Backend, Options, kernel
from .allocator import keep_freed_memory
from .attention import attention
from .threads import Threads, slices
from .weights import Weights

Array = NDArray[np.float32]


# Here the formula is already what numpy does best.
FORMULA_IS_BEST = (
    ops.embedding, ops.get_rows, ops.add_bias, ops.add, ops.mul, ops.split_heads, ops.merge_heads, ops.kv_write,
    ops.silu, ops.attention_scores, ops.causal_mask, ops.softmax, ops.attention_mix,
)  # fmt: skip

FEW_ROWS = 16  # tokens of a step: below, a product is bound by reading its weight


class Numpy(Backend):
    name: ClassVar[str] = "numpy"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.kernels |= {op.name: op.formula for op in FORMULA_IS_BEST}
        keep_freed_memory()
        self.threads = Threads(self.n_threads)
        self.weights = Weights(self.options.weights_memory, self.threads)
        self._turns: tuple[bytes, bytes, NDArray[np.complex64]] | None = None

    def warm_up(self, weights: Iterable[Tensor]) -> None:
        self.weights.warm_up(weights)

    def nbytes(self, buffer: Tensor | NDArray[Any]) -> int:
        return 4 * buffer.n_params if isinstance(buffer, Tensor) else buffer.nbytes  # a product reads float32

    def describe(self) -> str:
        return f"numpy {np.__version__}, {self.threads.n} threads, weights in float32"

    # Products

    @kernel(ops.matmul)
    def matmul(self, x: Array, weight: Tensor) -> Array:
        dense = self.weights.get(weight)
        if dense is None:
            return self.weights.multiply(x, weight)
        if len(x) < FEW_ROWS:  # memory is the limit, and BLAS's own threads wait in a loop: faster than to wake one of ours
            y: Array = x @ dense.T
            return y
        y = np.empty((len(x), len(dense)), x.dtype)

        def product(columns: slice) -> None:
            np.matmul(x, dense[columns].T, out=y[:, columns])

        self.threads.each(product, slices(len(dense), -(-len(dense) // self.threads.n)))
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
            square = np.matmul(part[:, None, :], part[:, :, None])[:, 0]  # [rows, 1]: each row's product with itself
            np.divide(part, np.sqrt(square * np.float32(1 / x.shape[1]) + np.float32(eps)), out=y[rows])
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

        with np.errstate(over="ignore"):  # exp(-x) = inf for a very negative x gives the right silu(x) = -0
            self.threads.rows(activate, len(y), y.itemsize * y.shape[1])
        return y

    @kernel(ops.kv_write)
    def kv_write(self, cache: Array, x: Array, positions: NDArray[Any]) -> Array:
        start = int(positions[0])  # a step's positions are consecutive
        cache[start : start + len(x)] = x
        return cache[: start + len(x)]

    @kernel(ops.rope)
    def rope(self, x: Array, positions: NDArray[Any], freqs: Array, *, neox: bool = False) -> Array:
        turn, r = self._turn(positions, freqs), len(freqs)
        y = x.copy()

        def rotate(rows: slice) -> None:
            if neox:
                pair = x[rows, :, :r] + 1j * x[rows, :, r : 2 * r]
                pair *= turn[rows]
                y[rows, :, :r], y[rows, :, r : 2 * r] = pair.real, pair.imag
            else:  # neighbours in memory are a complex number as they lie
                pair = y[rows, :, : 2 * r].view(np.complex64)
                pair *= turn[rows]

        self.threads.rows(rotate, len(x), x.itemsize * x.shape[1] * x.shape[2])
        return y

    def _turn(self, positions: NDArray[Any], freqs: Array) -> NDArray[np.complex64]:
        """exp(i * positions[t] * freqs[j]), [T, 1, r]: to turn a pair is to multiply by it. The same for all layers of a step."""
        at, of = positions.tobytes(), freqs.tobytes()
        turns = self._turns
        if turns is None or turns[0] != at or turns[1] != of:
            angle = (positions[:, None] * freqs.astype(np.float64))[:, None, :]
            turns = self._turns = (at, of, np.exp(1j * angle).astype(np.complex64))
        return turns[2]
