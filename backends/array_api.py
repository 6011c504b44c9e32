"""A backend over any library that follows the Python array API standard: all ops of a model, in the standard's functions only.

https://data-apis.org/array-api: what numpy, PyTorch, CuPy, dask and others agree on. Nothing here knows which of them computes.
This is about the least that a complete backend is. `backends.array_api:Strict` runs it on array-api-strict, which refuses
whatever the standard does not promise; `backends.array_api:Torch` runs it on PyTorch. For another library, a subclass names it.
"""

from __future__ import annotations

import importlib
from math import inf, prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

import ops
from ops.errors import BackendError
from ops.tensor import Tensor

from .base import Backend, Options, kernel
from .gelu import gelu

Array = Any  # the library's own


class ArrayApi(Backend):
    """Weights and activations are float32; a cache is float32, or float16 where the library has it."""

    namespace: ClassVar[str]  # the module with the standard's functions
    packages: ClassVar[str]  # what to install for it

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        try:
            self.xp = importlib.import_module(self.namespace)
        except ImportError as error:
            raise BackendError(f"backend '{self.name}' finds no {error.name}: pip install {self.packages}") from error

    def describe(self) -> str:
        return f"array API functions of {self.namespace}, weights in float32"

    # Where arrays live

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        name = np.dtype(dtype).name
        if not hasattr(self.xp, name):  # the standard has no float16, most libraries do
            raise BackendError(f"backend '{self.name}' has no {name}: use a KV cache of float32")
        return self.xp.zeros(shape, dtype=getattr(self.xp, name))

    def upload(self, array: NDArray[Any]) -> Array:
        return self.xp.asarray(np.array(array, order="C"))  # a copy, since asarray may share the memory it is given

    def download(self, buffer: Array) -> NDArray[Any]:
        return np.array(np.from_dlpack(buffer))  # the standard's way to hand memory from library to library

    def overwrite(self, buffer: Array, array: NDArray[Any]) -> None:
        buffer[: len(array), ...] = self._cast(self.upload(array), buffer)

    def weight(self, tensor: Tensor) -> Array:
        return self.upload(tensor.dequantize())

    def nbytes(self, buffer: Array) -> int:
        info = self.xp.finfo if self.xp.isdtype(buffer.dtype, "real floating") else self.xp.iinfo
        return int(prod(buffer.shape) * info(buffer.dtype).bits // 8)

    def resident_bytes(self, tensor: Tensor, dtype: str) -> int:
        return 4 * tensor.n_params

    def _cast(self, x: Array, like: Array) -> Array:
        return self.xp.asarray(x, dtype=like.dtype)

    # Rows

    @kernel(ops.embedding)
    def embedding(self, tokens: Array, table: Array) -> Array:
        return self.xp.take(table, tokens, axis=0)

    @kernel(ops.get_rows)
    def get_rows(self, x: Array, ids: Array) -> Array:
        return self.xp.take(x, ids, axis=0)

    @kernel(ops.split_heads)
    def split_heads(self, x: Array, *, h: int) -> Array:
        return self.xp.reshape(x, (x.shape[0], h, x.shape[1] // h))

    @kernel(ops.merge_heads)
    def merge_heads(self, x: Array) -> Array:
        return self.xp.reshape(x, (x.shape[0], x.shape[1] * x.shape[2]))

    @kernel(ops.kv_write)
    def kv_write(self, cache: Array, x: Array, positions: Array) -> Array:
        start = int(positions[0])  # a step's positions are consecutive
        end = start + x.shape[0]
        cache[start:end, ...] = self._cast(x, cache)
        return cache[:end, ...]

    # Arithmetic

    @kernel(ops.add)
    def add(self, a: Array, b: Array) -> Array:
        return a + b

    @kernel(ops.mul)
    def mul(self, a: Array, b: Array) -> Array:
        return a * b

    @kernel(ops.add_bias)
    def add_bias(self, x: Array, bias: Array) -> Array:
        return x + bias

    @kernel(ops.matmul)
    def matmul(self, x: Array, weight: Array) -> Array:
        return x @ weight.T

    @kernel(ops.silu)
    def silu(self, x: Array) -> Array:
        return x / (1 + self.xp.exp(-x))

    @kernel(ops.gelu)
    def gelu(self, x: Array) -> Array:
        return gelu(x, self.xp)

    @kernel(ops.swiglu)
    def swiglu(self, gate: Array, up: Array) -> Array:
        return self.silu(gate) * up

    @kernel(ops.rmsnorm)
    def rmsnorm(self, x: Array, weight: Array, *, eps: float) -> Array:
        return x / self.xp.sqrt(self.xp.mean(x * x, axis=-1, keepdims=True) + eps) * weight

    @kernel(ops.layernorm)
    def layernorm(self, x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
        centred = x - self.xp.mean(x, axis=-1, keepdims=True)
        variance = self.xp.mean(centred * centred, axis=-1, keepdims=True)
        return centred / self.xp.sqrt(variance + eps) * weight + bias

    @kernel(ops.rope)
    def rope(self, x: Array, positions: Array, freqs: Array, *, neox: bool = False) -> Array:
        xp, r = self.xp, freqs.shape[0]
        # float64, since a float32 has 24 bits: at position 100,000 it would leave an angle wrong by 4e-3
        angle = xp.asarray(positions, dtype=xp.float64)[:, None] * xp.asarray(freqs, dtype=xp.float64)
        cos, sin = (self._cast(f(angle), x)[:, None, :] for f in (xp.cos, xp.sin))  # [T, 1, r]
        first, second = (slice(r), slice(r, 2 * r)) if neox else (slice(0, 2 * r, 2), slice(1, 2 * r, 2))
        y = xp.empty_like(x)
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., first] * sin + x[..., second] * cos
        y[..., 2 * r :] = x[..., 2 * r :]
        return y

    # Attention: h query heads that share k key heads are seen as [k, h/k], and products broadcast over the sharers

    @kernel(ops.attention_scores)
    def attention_scores(self, q: Array, keys: Array) -> Array:
        (T, h, d), (S, k, _) = q.shape, keys.shape
        shared = self.xp.reshape(self.xp.moveaxis(q, 0, 1), (k, h // k, T, d))
        kq = shared @ self.xp.moveaxis(self._cast(keys, q), 0, 2)[:, None, :, :]  # keys as [k, 1, d, S]
        return self.xp.reshape(kq, (h, T, S))

    @kernel(ops.causal_mask)
    def causal_mask(self, kq: Array, positions: Array, *, scale: float) -> Array:
        later = self.xp.arange(kq.shape[-1])[None, :] > positions[:, None]  # [T, S]
        return self.xp.where(later, self.xp.asarray(-inf, dtype=kq.dtype), kq * scale)

    @kernel(ops.softmax)
    def softmax(self, x: Array) -> Array:
        e = self.xp.exp(x - self.xp.max(x, axis=-1, keepdims=True))
        return e / self.xp.sum(e, axis=-1, keepdims=True)

    @kernel(ops.attention_mix)
    def attention_mix(self, p: Array, values: Array) -> Array:
        (h, T, S), (_, k, e) = p.shape, values.shape
        mixed = self.xp.reshape(p, (k, h // k, T, S)) @ self.xp.moveaxis(self._cast(values, p), 1, 0)[:, None, :, :]
        return self.xp.moveaxis(self.xp.reshape(mixed, (h, T, e)), 0, 1)

    @kernel(ops.attention)
    def attention(self, q: Array, keys: Array, values: Array, positions: Array, *, scale: float) -> Array:
        kq = self.causal_mask(self.attention_scores(q, keys), positions, scale=scale)
        return self.attention_mix(self.softmax(kq), values)


class Strict(ArrayApi):
    name: ClassVar[str] = "array_api_strict"
    kv_dtypes: ClassVar[tuple[str, ...]] = ("float32",)  # the standard has no float16
    namespace: ClassVar[str] = "array_api_strict"
    packages: ClassVar[str] = "array-api-strict"


class Torch(ArrayApi):
    """On the CPU. torch's own functions deviate from the standard here and there; array-api-compat sets that right."""

    name: ClassVar[str] = "torch"
    namespace: ClassVar[str] = "array_api_compat.torch"
    packages: ClassVar[str] = "torch array-api-compat"
