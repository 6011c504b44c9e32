"""The matrix product: nearly all of the arithmetic of a transformer."""

from .op import Array, op
from .tensor import dense


@op("x[T, n], weight:weight[m, n] -> y[T, m]", flops="2*T*m*n")
def matmul(x: Array, weight: Array) -> Array:
    """y = x @ weight.T. A row of the weight is one output; its blocks run along n."""
    return x @ dense(weight, x.dtype).T


@op("x[T, n], bias[n] -> y[T, n]", flops="T*n")
def add_bias(x: Array, bias: Array) -> Array:
    """y[t] = x[t] + bias"""
    return x + bias
