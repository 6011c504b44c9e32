"""The memory of attention: keys and values of all tokens so far, one row a position."""

from .op import Array, op


@op("cache![C, k, d], x[T, k, d], positions:int[T] -> seen[S, k, d]", touches={"cache": "T/C", "seen": "0"}, view_of="cache")
def kv_write(cache: Array, x: Array, positions: Array) -> Array:
    """cache[positions[t]] = x[t]; what comes out is the filled part, a view of the S = positions[-1] + 1 first rows.

    The positions of a step are consecutive. C, the places allocated, may grow between steps and is never a model's size.
    """
    cache[positions] = x
    return cache[: int(positions[-1]) + 1]
