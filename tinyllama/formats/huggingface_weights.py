"""The order of rows: which row of a Hugging Face weight becomes which row here. Rows are copied when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.tensor import MadeRows, Tensor

Rows = NDArray[np.int64]
Order = Callable[[Rows], Rows]  # rows as wanted -> where they lie in the file


@dataclass(frozen=True)
class Weight:
    """One tensor that an architecture reads."""

    stored: str  # its name in the safetensors files
    name: str  # its name in GGUF
    shape: tuple[int, ...]  # [outputs, inputs] of a matrix
    optional: bool = False
    order: Order | None = None  # None: rows stay where they are


def pairs_beside(head_dim: int) -> Order:
    """The rows of q and k, head by head: rope pairs rows i and i + d/2 of the file, and rows 2i and 2i + 1 here."""

    def order(rows: Rows) -> Rows:
        i = rows % head_dim
        return rows - i + i % 2 * (head_dim // 2) + i // 2

    return order


def queries_keys_values(n_head: int, n_head_kv: int, head_dim: int) -> Order:
    """Rows of a fused query_key_value: in the file group by group, each its queries, a key and a value; here all queries,
    then all keys, then all values. A group is the n_head / n_head_kv query heads that share one head of keys and values.
    """
    in_group = n_head // n_head_kv

    def order(rows: Rows) -> Rows:
        head, i = np.divmod(rows, head_dim)  # heads counted through: queries, keys, values
        of_keys = head - n_head  # negative for queries
        group = np.where(of_keys < 0, head // in_group, of_keys % n_head_kv)
        place = np.where(of_keys < 0, head % in_group, in_group + of_keys // n_head_kv)
        return (group * (in_group + 2) + place) * head_dim + i

    return order


def reordered(tensor: Tensor, order: Order) -> Tensor:
    """The tensor with its rows in another order; of a bias, its elements."""
    data, n = tensor.data, tensor.shape[0]
    if len(tensor.shape) == 1:
        elements = data[0].reshape(n, -1)
        made = MadeRows((1, data.nbytes), lambda rows: elements[order(np.arange(n))].reshape(1, -1)[rows], (data,))
    else:
        made = MadeRows((n, data.shape[1]), lambda rows: data[order(_numbers(rows, n))], (data,))
    return Tensor(tensor.name, tensor.shape, tensor.format, made)


def _numbers(rows: Any, n: int) -> Rows:
    return np.arange(*rows.indices(n)) if isinstance(rows, slice) else np.asarray(rows, np.int64) % n
