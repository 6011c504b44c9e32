"""Attention in parts: scores, mask, (softmax,) mix, and all four in one.            Vaswani et al. 2017, eq. 1

With grouped queries (Ainslie et al. 2023), h query heads share k key heads evenly: query head i reads key head i // (h/k).
"""

import numpy as np

from .op import Array, op
from .softmax import softmax


def _per_query_head(x: Array, h: int) -> Array:
    """[S, k, d] -> [h, S, d]: each key head repeated for the query heads that share it."""
    return x.transpose(1, 0, 2).repeat(h // x.shape[1], axis=0)


@op("q[T, h, d], keys[S, k, d] -> kq[h, T, S]", flops="2*T*h*d*S", where="h % k == 0")
def attention_scores(q: Array, keys: Array) -> Array:
    """kq[i, t, s] = q[t, i] . keys[s, i // (h/k)]"""
    return q.transpose(1, 0, 2) @ _per_query_head(keys, q.shape[1]).transpose(0, 2, 1)


@op("kq[h, T, S], positions:int[T] -> y[h, T, S]", flops="h*T*S")
def causal_mask(kq: Array, positions: Array, *, scale: float) -> Array:
    """y = kq * scale, and -inf where key s comes after the query, s > positions[t]: no token sees the future."""
    later = np.arange(kq.shape[-1]) > positions[:, None]
    return np.where(later, kq.dtype.type(-np.inf), kq * kq.dtype.type(scale))


@op("p[h, T, S], values[S, k, d] -> y[T, h, d]", flops="2*T*h*d*S", where="h % k == 0")
def attention_mix(p: Array, values: Array) -> Array:
    """y[t, i] = sum over s of p[i, t, s] * values[s, i // (h/k)]"""
    return (p @ _per_query_head(values, len(p))).transpose(1, 0, 2)


@op(
    "q[T, h, d], keys[S, k, d], values[S, k, e], positions:int[T] -> y[T, h, e]",
    flops="2*h*(d+e)*(T*S - T*(T-1)/2)",  # a query sees what came before it: the last of T all S keys, the first S-T+1
    where="h % k == 0",
    fused=True,
)
def attention(q: Array, keys: Array, values: Array, positions: Array, *, scale: float) -> Array:
    """softmax(q @ keys.T * scale + mask) @ values: the four steps in one, so that kq need not go to memory."""
    return attention_mix(softmax(causal_mask(attention_scores(q, keys), positions, scale=scale)), values)
