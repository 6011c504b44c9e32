"""From token ids to vectors, and from all rows to those that are asked for: both pick rows of a matrix."""

from .op import Array, op
from .tensor import Tensor


@op("tokens:int[T], table:weight[V, n] -> x[T, n]", touches={"table": "T/V"})
def embedding(tokens: Array, table: Array) -> Array:
    """x[t] = table[tokens[t]]"""
    return table.dequantize(tokens) if isinstance(table, Tensor) else table[tokens]


@op("x[T, n], ids:int[U] -> y[U, n]", touches={"x": "U/T"})
def get_rows(x: Array, ids: Array) -> Array:
    """y[u] = x[ids[u]]: in the last layer, the rows of the tokens whose logits are wanted."""
    return x[ids]
