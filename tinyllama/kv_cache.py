"""The KV caches of a graph: to which layer each belongs, the shape of one place, and the type of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.base import Backend
from ops.errors import OptionError
from ops.graph import Graph

Shapes = dict[str, tuple[int, tuple[int, ...]]]  # a cache's leaf -> its layer, the shape of one place
# by the names of llama.cpp's -ctk and -ctv
TYPES: dict[str, np.dtype] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}


@dataclass(frozen=True)
class KvTypes:
    """What the user wants keys and values to be kept in; None: what the backend of the layer prefers."""

    k: str | None = None
    v: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("type_k", self.k), ("type_v", self.v)):
            if value is not None and (not isinstance(value, str) or value not in TYPES):
                raise OptionError(f"{name} = {value!r}: a KV cache is kept in {' or '.join(TYPES)}")


def cache_shapes(graph: Graph) -> Shapes:
    """The caches that a graph writes."""
    writers = {v: n for n in graph.nodes for v in n.inputs if v.shape[0] == "C"}
    return {v.name: (int(n.layer or 0), tuple(map(int, v.shape[1:]))) for v, n in writers.items()}


def cache_dtypes(shapes: Shapes, layers: Sequence[Backend], types: KvTypes) -> dict[str, np.dtype]:
    """Of each cache: what the user wants, or what the backend of its layer prefers. OptionError if it cannot have that."""
    dtypes = {}
    for name, (layer, _) in shapes.items():
        wanted, backend = types.k if name.startswith("cache_k") else types.v, layers[layer]
        dtypes[name] = TYPES[wanted] if wanted else np.dtype(backend.kv_dtype)
        if dtypes[name].name not in backend.kv_dtypes:
            can = " or ".join(backend.kv_dtypes)
            raise OptionError(f"a KV cache of {dtypes[name].name} (-ctk, -ctv): backend '{backend.name}' keeps it in {can}")
    return dtypes


def cache_bytes(shapes: Shapes, dtypes: Mapping[str, np.dtype], places: int) -> dict[str, int]:
    """Of each cache with so many places."""
    return {name: places * int(np.prod(shape)) * dtypes[name].itemsize for name, (_, shape) in shapes.items()}
