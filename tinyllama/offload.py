"""Which layer, with its part of the KV cache, lives on which backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from backends.base import Backend
from ops.graph import Graph, Node


@dataclass(frozen=True)
class Placement:
    """A backend for what comes before the layers, one for each layer, and one for what comes after."""

    input: Backend
    layers: tuple[Backend, ...]
    output: Backend

    @staticmethod
    def all_on(backend: Backend, n_layer: int) -> Placement:
        return Placement(backend, (backend,) * n_layer, backend)

    def runs(self, graph: Graph) -> list[tuple[Backend, list[Node]]]:
        """The graph's nodes in order, cut where the backend changes."""
        placed: list[tuple[Backend, Node]] = []
        before_layers = True
        for node in graph.nodes:
            before_layers = before_layers and node.layer is None
            if node.layer is not None:
                placed.append((self.layers[node.layer], node))
            else:
                placed.append((self.input if before_layers else self.output, node))
        return [(backend, [n for _, n in run]) for backend, run in groupby(placed, key=lambda pair: pair[0])]

    def ranges(self) -> Iterator[str]:
        """For the load summary: `layers 0-29: numpy`."""
        start = 0
        for backend, run in groupby(self.layers):
            end = start + len(list(run)) - 1
            yield f"layers {start}-{end}: {backend.name}" if end > start else f"layer {start}: {backend.name}"
            start = end + 1
        if {self.input, self.output} != set(self.layers):
            yield f"input: {self.input.name}, output: {self.output.name}"
