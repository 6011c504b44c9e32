"""Normalisation: every row is brought to one scale before it is multiplied."""

import numpy as np

from .op import Array, op


@op("x[T, n], weight[n], bias[n] -> y[T, n]", flops="8*T*n")
def layernorm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias                                  Ba et al. 2016, eq. 4"""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + x.dtype.type(eps)) * weight + bias


@op("x[T, n], weight[n] -> y[T, n]", flops="4*T*n")
def rmsnorm(x: Array, weight: Array, *, eps: float) -> Array:
    """y = x / sqrt(mean(x^2) + eps) * weight                                  Zhang & Sennrich 2019, eq. 4"""
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(eps)) * weight
