"""The largest numbers of a row, and where they are."""

import numpy as np
from numpy.typing import NDArray

from .op import Array, op


@op("x[T, n] -> values[T, k], ids:int[T, k]", flops="T*n", where="k <= n")
def top_k(x: Array, *, k: int) -> tuple[Array, Array]:
    """values[t] = x[t, ids[t]]: the k largest of a row, the largest first, of equal ones the lower id. NaN is above all."""
    ids = np.stack([_largest(row, k) for row in x])
    return np.take_along_axis(x, ids, axis=1), ids


def _largest(row: Array, k: int) -> NDArray[np.intp]:
    if k == 1:
        return np.array([row.argmax()])  # which finds the first NaN before any number
    n = len(row)
    # Of 64 rows that lie one below the other, the k-th largest column maximum is at most the k-th largest number, and nearly as
    # much: few numbers reach it, and finding it takes one pass, where np.argpartition on all of them takes several.
    maxima = row[: n - n % 64].reshape(64, -1).max(axis=0) if n >= 64 * k else row
    bound = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
    few = np.flatnonzero(~(row < bound))[::-1]  # NaN is below nothing
    return few[np.argsort(row[few], kind="stable")[-k:][::-1]]  # numpy's sort has NaN last
