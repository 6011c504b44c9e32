"""Scores to weights that are positive and sum to one."""

import numpy as np

from .op import Array, op


@op("x[h, T, S] -> y[h, T, S]", flops="5*h*T*S")
def softmax(x: Array) -> Array:
    """y = exp(x - max(x)) / sum(exp(x - max(x))) along the last axis. Without the max, exp overflows at 88 in float32."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
