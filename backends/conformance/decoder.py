"""A transformer of one layer in two dozen lines, LLaMA's, for the checks of whole graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops import (
    add,
    add_bias,
    attention_mix,
    attention_scores,
    causal_mask,
    embedding,
    get_rows,
    kv_write,
    layer,
    matmul,
    merge_heads,
    mul,
    rmsnorm,
    rope,
    silu,
    softmax,
    split_heads,
)
from ops.blocks import FORMATS
from ops.graph import Graph, Value
from ops.tensor import Tensor

from .blocks import weight

Array = NDArray[Any]
EPS = 1e-5
OPS_USED = (
    "embedding", "rmsnorm", "matmul", "add_bias", "split_heads", "rope", "kv_write", "attention", "merge_heads", "get_rows",
    "add", "swiglu",
)  # fmt: skip


@dataclass(frozen=True)
class Decoder:
    """Sizes as in a model's file. n, ff and h * d are multiples of the format's block."""

    n: int
    h: int
    k: int
    d: int
    ff: int
    vocabulary: int = 11
    neox: bool = False
    format: str = "F32"
    seed: int = 0

    def weights(self) -> dict[str, Tensor]:
        """The same each time. Of a magnitude that keeps activations at about 1, if in float32."""
        return self._weights

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        rng = np.random.default_rng(self.seed)
        q, kv = self.h * self.d, self.k * self.d
        shapes = {"table": (self.vocabulary, self.n), "q": (q, self.n), "k": (kv, self.n), "v": (kv, self.n),
                  "o": (self.n, q), "gate": (self.ff, self.n), "up": (self.ff, self.n), "down": (self.n, self.ff)}  # fmt: skip
        products = {name: self._product(rng, name, shape) for name, shape in shapes.items()}
        plain = {"attn_norm": self.n, "ffn_norm": self.n, "out_norm": self.n, "bias": kv}
        floats = {name: rng.uniform(0.5, 1.5, size) for name, size in plain.items()}
        floats["freqs"] = 10_000.0 ** (-np.arange(self.d // 2) / (self.d // 2))
        return products | {name: float_tensor(name, values) for name, values in floats.items()}

    def _product(self, rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Tensor:
        if FORMATS[self.format].block_size > 1:
            return weight(rng, name, shape, self.format, "usual")
        return float_tensor(name, rng.standard_normal(shape) * (1 if name == "table" else shape[1] ** -0.5))

    @cached_property
    def scale(self) -> float:
        """Keeps scores below 4, whatever the weights are: exp would make an error of 1 in 1000 one of 100%."""
        w = {
            name: tensor.dequantize().astype(np.float64)
            for name, tensor in self._weights.items()
            if name in "table attn_norm q k bias"
        }
        x = rmsnorm(w["table"], w["attn_norm"], eps=EPS)
        q, k = (np.linalg.norm(y.reshape(len(x), -1, self.d), axis=-1).max() for y in (x @ w["q"].T, x @ w["k"].T + w["bias"]))
        return float(f"{4 / (q * k):.4g}")

    def graph(self) -> Graph:
        """Inputs tokens[T], positions[T], out_ids[U]; caches k_cache, v_cache[C, k, d]; outputs logits[U, V], out[T, n]."""
        graph = Graph()
        w = {
            name: graph.leaf(name, tensor.shape, "weight" if len(tensor.shape) == 2 else "float")
            for name, tensor in self._weights.items()
        }
        inputs = [graph.leaf(name, (size,), "int") for name, size in (("tokens", "T"), ("positions", "T"), ("out_ids", "U"))]
        caches = [graph.leaf(name, ("C", self.k, self.d)) for name in ("k_cache", "v_cache")]
        graph.outputs = list(self._equations(w, *inputs, *caches))
        return graph

    def _equations(
        self, w: Mapping[str, Value], tokens: Value, positions: Value, out_ids: Value, k_cache: Value, v_cache: Value
    ) -> tuple[Any, Any]:
        x = embedding(tokens, w["table"], name="embedded")
        with layer(0):
            normed = rmsnorm(x, w["attn_norm"], eps=EPS, name="attn_norm")
            q = split_heads(matmul(normed, w["q"], name="q"), h=self.h)
            k = split_heads(add_bias(matmul(normed, w["k"], name="k"), w["bias"]), h=self.k)
            v = split_heads(matmul(normed, w["v"], name="v"), h=self.k)
            keys = kv_write(k_cache, rope(k, positions, w["freqs"], neox=self.neox), positions)
            values = kv_write(v_cache, v, positions)
            kq = attention_scores(rope(q, positions, w["freqs"], neox=self.neox), keys, name="kq")
            p = softmax(causal_mask(kq, positions, scale=self.scale))
            x = add(x, matmul(merge_heads(attention_mix(p, values)), w["o"], name="attn_out"))
            normed = rmsnorm(x, w["ffn_norm"], eps=EPS, name="ffn_norm")
            gated = mul(silu(matmul(normed, w["gate"], name="gate")), matmul(normed, w["up"], name="up"))
            x = add(x, matmul(gated, w["down"], name="down"), name="out")
        last = rmsnorm(get_rows(x, out_ids), w["out_norm"], eps=EPS)
        return matmul(last, w["table"], name="logits"), x


def float_tensor(name: str, values: Array) -> Tensor:
    """In float32."""
    return Tensor(name, values.shape, FORMATS["F32"], np.ascontiguousarray(values, "<f4").view(np.uint8))


def evaluate(graph: Graph, leaves: Mapping[str, Any]) -> dict[str, Array]:
    """Every value of a graph by its name, node by node, by the formulas; caches among the leaves are written."""
    values: dict[Value, Any] = {value: leaves[name] for name, value in graph.leaves.items()}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            made = node.op.results(node.op.formula(*(values[v] for v in node.inputs), **node.attrs))
            values |= zip(node.outputs, map(np.array, made), strict=True)
    return {value.name: array for value, array in values.items()}
