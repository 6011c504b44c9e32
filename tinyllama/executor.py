"""Runs a graph: one prepared plan for each run of nodes on the same backend, values handed over only at the borders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.base import Backend, Buffer, Observer, Plan
from ops.errors import BackendError, TinyLlamaError
from ops.graph import Graph
from ops.tensor import Tensor

from .offload import Placement


class Executor:
    """A graph bound to weights and caches. Generation, tracing and profiling all go through `step`."""

    def __init__(self, graph: Graph, placement: Placement, leaves: Mapping[str, Tensor | Buffer]) -> None:
        self._weights = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
        self._segments: list[tuple[Backend, Graph, Plan]] = []
        for backend, nodes in placement.runs(graph):
            part = graph.part(nodes)
            plan = backend.compile(part, {name: leaves[name] for name in part.leaves if name in leaves})
            self._segments.append((backend, part, plan))
        self._outputs = [v.name for v in graph.outputs]
        self._inputs = [[name for name in part.leaves if name not in leaves] for _, part, _ in self._segments]

    def rebind(self, name: str, buffer: Buffer) -> None:
        """A leaf is another buffer from now on: a cache that has grown."""
        for _, part, plan in self._segments:
            if name in part.leaves:
                plan.rebind(name, buffer)

    def step(self, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None) -> list[NDArray[Any]]:
        """Run all nodes once; the graph's outputs as arrays on the host."""
        values = dict(inputs)
        with np.errstate(all="ignore"):  # a damaged weight's NaN shows in the logits; a warning would not say where
            for (backend, part, plan), names in zip(self._segments, self._inputs, strict=True):
                try:
                    outputs = plan({name: values[name] for name in names}, observe)
                    for value, buffer in zip(part.outputs, outputs, strict=True):
                        values[value.name] = backend.download(buffer)
                except (TinyLlamaError, MemoryError):
                    raise
                except Exception as error:  # a device's own: lost, out of memory, a kernel that does not compile
                    told = " ".join(f"{type(error).__name__}: {error}".split())
                    raise BackendError(f"backend '{backend.name}' failed in a step: {told}") from error
        return [values[name] for name in self._outputs]

    def warm_up(self, progress: Callable[[list[Tensor]], Iterable[Tensor]]) -> None:
        """Let each backend bring its weights into the form it computes in. `progress` wraps the list of them, as tqdm does."""
        for backend, part, _ in self._segments:
            whole = {  # a weight of which an op touches a few rows, as the embedding does, stays as it is
                value.name: self._weights[value.name]
                for node in part.nodes
                for value, operand in zip(node.inputs, node.op.inputs, strict=True)
                if operand.dtype == "weight" and operand.name not in node.op.touches
            }
            backend.warm_up(progress(list(whole.values())))

    def on_host(self) -> Counter[str]:
        """Ops that ran by their formula on the host for want of a kernel, and how many nodes of each."""
        return sum((plan.on_host for _, _, plan in self._segments), Counter())
