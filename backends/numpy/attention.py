"""Attention over the filled part of the cache, a block of queries at a time.

The scores of all queries against all keys would be h * T * S numbers that travel to memory and back four times. A block of
queries has so few that they stay in the core's cache, and it skips the keys that none of its queries may see. Dividing by the
sum of exp is left to the end, where it costs d numbers a row and not S.                                    cf. Dao et al. 2022
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .threads import slices

Array = NDArray[np.float32]
BLOCK = 96  # queries; with SmolLM2's nine heads and 512 keys, 1.7 MB of scores, which a core's second cache holds


def attention(q: Array, keys: NDArray[Any], values: NDArray[Any], positions: NDArray[Any], scale: float) -> Array:
    """q[T, h, d], keys[S, k, d], values[S, k, e] -> [T, h, e]; keys and values may be kept in float16"""
    keys, values = keys.astype(q.dtype, copy=False), values.astype(q.dtype, copy=False)  # BLAS multiplies no halves
    T, h, d = q.shape
    k, e = values.shape[1:]
    group = h // k  # query heads that share a key head
    out = np.empty((T, h, e), q.dtype)

    for rows in slices(T, BLOCK):
        at = positions[rows]
        n = len(at)
        first, last = (at[0], at[0]) if n == 1 else (at.min(), at.max())
        seen = min(int(last) + 1, len(keys))
        # queries that share a key head lie together: one matrix product for each key head
        qb = (q[rows] * q.dtype.type(scale)).reshape(n, k, group, d).transpose(1, 2, 0, 3).reshape(k, group * n, d)
        p = qb @ keys[:seen].transpose(1, 2, 0)  # [k, group * n, seen]
        if n > 1:
            later = np.arange(first + 1, seen) > at[:, None]
            p.reshape(k, group, n, seen)[..., first + 1 :] += np.where(later, q.dtype.type(-np.inf), q.dtype.type(0))
        p -= p.max(axis=-1, keepdims=True)
        np.exp(p, out=p)
        mixed = p @ values[:seen].transpose(1, 0, 2)  # [k, group * n, e]
        mixed /= p.sum(axis=-1, keepdims=True)
        out[rows] = mixed.reshape(k, group, n, e).transpose(2, 0, 1, 3).reshape(n, h, e)
    return out
