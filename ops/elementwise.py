"""Sum and product, element by element."""

from .op import Array, op


@op("a[T, n], b[T, n] -> y[T, n]", flops="T*n")
def add(a: Array, b: Array) -> Array:
    """y = a + b: the residual connection                                                He et al. 2015, eq. 1"""
    return a + b


@op("a[T, n], b[T, n] -> y[T, n]", flops="T*n")
def mul(a: Array, b: Array) -> Array:
    """y = a * b"""
    return a * b
