"""numpy: BLAS does the products, array operations the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from threading import local
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import ops
from ops.graph import Graph
from ops.op import Op
from ops.tensor import Tensor

from ..base import Backend, Buffer, Options, Plan, kernel
from ..gelu import gelu
from ..plan import live_bytes
from .allocator import keep_freed_memory
from .attention import BLOCK, attention
from .threads import Threads, slices
from .wavefront import WavefrontPlan
from .weights import CONVERSION, Weights

Array = NDArray[np.float32]

# Here the formula is already what numpy does best.
FORMULA_IS_BEST = (
    ops.embedding,
    ops.get_rows,
    ops.add_bias,
    ops.add,
    ops.mul,
    ops.split_heads,
    ops.merge_heads,
    ops.silu,
    ops.attention_scores,
    ops.causal_mask,
    ops.softmax,
    ops.attention_mix,
    ops.top_k,
)

CHUNK = 1 << 15  # numbers that gelu's thirty steps take at a time: a few arrays of 128 kB stay in the core's cache


class Numpy(Backend):
    name: ClassVar[str] = "numpy"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        keep_freed_memory()
        self.threads = Threads(self.n_threads)
        self.weights = Weights(self.options.weights_memory, self.threads)
        self._turns = local()  # each thread's last, since each has its own block of positions

    def kernel_of(self, op: Op) -> Callable[..., Array] | None:
        return super().kernel_of(op) or (op.formula if op in FORMULA_IS_BEST else None)

    def warm_up(self, weights: Iterable[Tensor]) -> None:
        self.weights.warm_up(weights)

    def nbytes(self, buffer: Tensor | NDArray[Any]) -> int:
        return 4 * buffer.n_params if isinstance(buffer, Tensor) else buffer.nbytes  # a product reads float32

    def scratch_bytes(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        """Values between ops, of all blocks of tokens together, and for each thread a block's scores or a weight's conversion.

        Weights that are kept are converted before the first step, in memory that the step then takes.
        """
        graph = self.fused(graph)
        heads = max((n.inputs[0].shape[1] for n in graph.nodes if n.op is ops.attention), default=0)
        scores = 4 * (int(heads) + 2) * min(BLOCK, sizes["T"]) * sizes["C"]
        live, n = live_bytes(graph, sizes), self.threads.n
        dense = sum(4 * prod(map(int, leaf.shape)) for leaf in graph.leaves.values() if leaf.dtype == "weight")
        if dense <= self.weights.budget:
            return max(live + n * scores, n * CONVERSION)
        return live + n * max(scores, CONVERSION)

    def describe(self) -> str:
        return f"numpy {np.__version__}, {self.threads.n} threads, weights in float32"

    def compile(self, graph: Graph, leaves: Mapping[str, Tensor | Buffer], sizes: Mapping[str, int] | None = None) -> Plan:
        return WavefrontPlan(self, graph, leaves, self.threads)

    @kernel(ops.matmul)
    def matmul(self, x: Array, weight: Tensor) -> Array:
        dense = self.weights.get(weight)
        if dense is None:
            return self.weights.multiply(x, weight)
        y: Array = x @ dense.T
        return y

    @kernel(ops.attention)
    def attention(self, q: Array, keys: Array, values: Array, positions: NDArray[Any], *, scale: float) -> Array:
        return attention(q, keys, values, positions, scale)

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x: Array, weight: Array, *, eps: float) -> Array:
        square = np.matmul(x[:, None, :], x[:, :, None])[:, 0]  # [T, 1]: each row's product with itself
        y: Array = x / np.sqrt(square * np.float32(1 / x.shape[1]) + np.float32(eps))
        y *= weight
        return y

    @kernel(ops.layernorm)
    def layernorm(self, x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
        y: Array = x - x.mean(axis=1, keepdims=True)
        square = np.matmul(y[:, None, :], y[:, :, None])[:, 0]  # [T, 1]: each row's product with itself
        y /= np.sqrt(square * np.float32(1 / x.shape[1]) + np.float32(eps))
        y *= weight
        y += bias
        return y

    @kernel(ops.gelu)
    def gelu(self, x: Array) -> Array:
        numbers, y = x.reshape(-1), np.empty(x.size, x.dtype)
        for part in slices(x.size, CHUNK):
            y[part] = gelu(numbers[part], np)
        return y.reshape(x.shape)

    @kernel(ops.swiglu)
    def swiglu(self, gate: Array, up: Array) -> Array:
        y = np.negative(gate)
        with np.errstate(over="ignore"):  # exp(-x) = inf for a very negative x gives the right silu(x) = -0
            np.exp(y, out=y)
        y += 1
        np.divide(gate, y, out=y)
        y *= up
        return y

    @kernel(ops.kv_write)
    def kv_write(self, cache: Array, x: Array, positions: NDArray[Any]) -> Array:
        start = int(positions[0])  # a step's positions are consecutive
        end = start + len(x)
        cache[start:end] = x
        seen: Array = cache[:end]
        return seen

    @kernel(ops.rope)
    def rope(self, x: Array, positions: NDArray[Any], freqs: Array, *, neox: bool = False) -> Array:
        turn, r = self._turn(positions, freqs), len(freqs)
        y: Array = x.copy()
        if neox:
            pair = x[..., :r] + 1j * x[..., r : 2 * r]
            pair *= turn
            y[..., :r], y[..., r : 2 * r] = pair.real, pair.imag
        else:  # neighbours in memory are a complex number as they lie
            pair = y[..., : 2 * r].view(np.complex64)
            pair *= turn
        return y

    def _turn(self, positions: NDArray[Any], freqs: Array) -> NDArray[np.complex64]:
        """exp(i * positions[t] * freqs[j]), [T, 1, r]: to turn a pair is to multiply by it. All layers of a step share it."""
        key = (positions.tobytes(), freqs.tobytes())
        if getattr(self._turns, "key", None) != key:
            angle = (positions[:, None] * freqs.astype(np.float64))[:, None, :]
            self._turns.key, self._turns.made = key, np.exp(1j * angle).astype(np.complex64)
        made: NDArray[np.complex64] = self._turns.made
        return made
