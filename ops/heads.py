"""The columns of a matrix seen as heads, and back: the same memory with another shape."""

from .op import Array, op


@op("x[T, n] -> y[T, h, n // h]", where="n % h == 0", touches={"x": "0", "y": "0"}, view_of="x")
def split_heads(x: Array, *, h: int) -> Array:
    """y[t, i] = x[t, i*d : (i+1)*d], d = n / h"""
    return x.reshape(len(x), h, -1)


@op("x[T, h, d] -> y[T, h * d]", touches={"x": "0", "y": "0"}, view_of="x")
def merge_heads(x: Array) -> Array:
    """The heads of a row side by side again."""
    return x.reshape(len(x), -1)
