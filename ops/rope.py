"""Rotary position embedding: a query and a key are turned by angles that grow with their positions, so that their dot
product depends on how far apart they are and on nothing else.                                       Su et al. 2021"""

import numpy as np

from .op import Array, op


@op("x[T, h, d], positions:int[T], freqs[r] -> y[T, h, d]", flops="6*T*h*r", where="2 * r <= d")
def rope(x: Array, positions: Array, freqs: Array, *, neox: bool = False) -> Array:
    """Turn pair i of the first 2*r components of each head by the angle positions[t] * freqs[i]       Su et al. 2021, eq. 34

    Pair i is (x[2i], x[2i+1]) in the paper and in LLaMA's files ("norm", interleaved), (x[i], x[i+r]) in GPT-NeoX's
    (`neox=True`). Components beyond 2*r stay as they are.
    """
    r = len(freqs)
    angle = (positions[:, None] * freqs.astype(np.float64))[:, None, :]  # [T, 1, r]; float32 would be off by 1e-3 at 10,000
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    first, second = (np.s_[..., :r], np.s_[..., r : 2 * r]) if neox else (np.s_[..., 0 : 2 * r : 2], np.s_[..., 1 : 2 * r : 2])
    y = x.copy()
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[first] * sin + x[second] * cos
    return y
