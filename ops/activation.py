"""The bend between two matrix products, without which they would be one."""

import numpy as np

from .elementwise import mul
from .op import Array, op


@op("x[T, n] -> y[T, n]", flops="4*T*n")
def silu(x: Array) -> Array:
    """y = x * sigmoid(x) = x / (1 + exp(-x))                                   Elfwing et al. 2017, eq. 4"""
    with np.errstate(over="ignore"):  # exp(-x) = inf for a very negative x gives the right y = -0
        return x / (1 + np.exp(-x))


@op("gate[T, n], up[T, n] -> y[T, n]", flops="5*T*n", fused=True)
def swiglu(gate: Array, up: Array) -> Array:
    """y = silu(gate) * up: the gated unit between LLaMA's feed-forward products       Shazeer 2020, eq. 5"""
    return mul(silu(gate), up)
