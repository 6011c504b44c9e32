"""The bend between two matrix products, without which they would be one."""

import math

import numpy as np

from .elementwise import mul
from .op import Array, op


@op("x[T, n] -> y[T, n]", flops="4*T*n")
def silu(x: Array) -> Array:
    """y = x * sigmoid(x) = x / (1 + exp(-x))                                   Elfwing et al. 2017, eq. 4"""
    with np.errstate(over="ignore"):  # exp(-x) = inf for a very negative x gives the right y = -0
        return x / (1 + np.exp(-x))


@op("x[T, n] -> y[T, n]", flops="8*T*n")
def gelu(x: Array) -> Array:
    """y = x * P(N(0, 1) <= x) = x/2 * erfc(-x / sqrt(2))                              Hendrycks & Gimpel 2016, section 2"""
    return x * (_erfc(x * -(0.5**0.5)) / 2).astype(x.dtype)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])  # numpy has none


@op("gate[T, n], up[T, n] -> y[T, n]", flops="5*T*n", fused=True)
def swiglu(gate: Array, up: Array) -> Array:
    """y = silu(gate) * up: the gated unit between LLaMA's feed-forward products       Shazeer 2020, eq. 5"""
    return mul(silu(gate), up)
