"""Matrices that files keep in parts, seen as one: its rows are put together when they are asked for, and not kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.tensor import MadeRows

Rows = NDArray[np.uint8] | MadeRows  # uint8[rows, bytes per row]


def beside(parts: Sequence[Rows]) -> MadeRows:
    """Parts with the same rows, each with its share of the columns."""
    n_bytes = sum(part.shape[1] for part in parts)
    return MadeRows((len(parts[0]), n_bytes), lambda rows: np.concatenate([part[rows] for part in parts], axis=1), (*parts,))


def below(parts: Sequence[Rows]) -> MadeRows:
    """Parts with the same columns, each with its share of the rows."""
    begins = [0, *accumulate(len(part) for part in parts)]
    n_rows = begins.pop()

    def make(rows: Any) -> NDArray[np.uint8]:
        if isinstance(rows, slice) and rows.step in (None, 1):
            first, end, _ = rows.indices(n_rows)
            shares = zip(begins, parts, strict=True)
            return np.concatenate([part[max(first - begin, 0) : max(end - begin, 0)] for begin, part in shares])
        numbers = np.arange(n_rows)[rows]
        made = np.empty((len(numbers), parts[0].shape[1]), np.uint8)
        for begin, part in zip(begins, parts, strict=True):
            here = (numbers >= begin) & (numbers < begin + len(part))
            made[here] = part[numbers[here] - begin]
        return made

    return MadeRows((n_rows, parts[0].shape[1]), make, (*parts,))
