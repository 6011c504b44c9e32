"""Runs a graph: one prepared plan for each run of nodes on the same backend, values handed over only at the borders.

Sampling looks at few logits, as a rule: at the largest. So a step can hand back these alone, found where the logits lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ops
from backends.base import Backend, Buffer, Observer, Plan, Progress
from ops.errors import BackendError, TinyLlamaError
from ops.graph import Graph
from ops.tensor import Tensor

from .offload import Placement

FEW = 4096  # numbers of which the largest is sought to warm up: so many take every kernel that a vocabulary takes


class Executor:
    """A graph bound to weights and caches. Generation, tracing and profiling all go through `step`."""

    def __init__(
        self, graph: Graph, placement: Placement, leaves: Mapping[str, Tensor | Buffer], sizes: Mapping[str, int]
    ) -> None:
        """sizes: of the largest step to expect, T tokens, U rows of logits, C places of a cache."""
        self._segments: list[tuple[Backend, Graph, Plan]] = []
        for backend, part in placement.parts(graph):
            with telling(backend, "when the model was prepared for it"):
                plan = backend.compile(part, {name: leaves[name] for name in part.leaves if name in leaves}, sizes)
            self._segments.append((backend, part, plan))
        self._outputs = [v.name for v in graph.outputs]
        self._inputs = [[name for name in part.leaves if name not in leaves] for _, part, _ in self._segments]
        self._sizes = sizes
        self._reduction: Reduction | None = None  # the last one asked for

    def rebind(self, name: str, buffer: Buffer) -> None:
        """A leaf is another buffer from now on: a cache that has grown."""
        for _, part, plan in self._segments:
            if name in part.leaves:
                plan.rebind(name, buffer)

    def step(self, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None, *, top: int = 0) -> list[NDArray[Any]]:
        """Run all nodes once; the graph's outputs as arrays on the host.

        top: instead of the last output the `top` largest numbers of its rows, and their places there, as `ops.top_k` has them.
        This is no part of the graph, and `observe` is not told of it.
        """
        values, largest = dict(inputs), []
        if not top:
            self._reduction = None  # before a plan may widen its buffers: it holds one of them
        with np.errstate(all="ignore"):  # a damaged weight's NaN shows in the logits; a warning would not say where
            for (backend, part, plan), names in zip(self._segments, self._inputs, strict=True):
                with telling(backend, "in a step"):
                    outputs = plan({name: values[name] for name in names}, observe)
                    for value, buffer in zip(part.outputs, outputs, strict=True):
                        if top and value.name == self._outputs[-1]:
                            largest = self._reduce(backend, value.name, buffer, top)(buffer)
                        else:
                            values[value.name] = backend.download(buffer)
        return [values[name] for name in self._outputs[: -1 if top else None]] + largest

    def warm_up(self, progress: Progress) -> None:
        """Let each backend do now what its first step would do once."""
        for backend, _, plan in self._segments:
            with telling(backend, "when it was warmed up"):
                plan.warm_up(progress)
        last, _, _ = self._segments[-1]
        with telling(last, "when it was warmed up"):
            few = last.allocate((1, FEW), np.float32)
            Reduction(last, self._outputs[-1], few, 1, self._sizes)(few)

    def _reduce(self, backend: Backend, name: str, buffer: Buffer, k: int) -> Reduction:
        if self._reduction is None or not self._reduction.fits(buffer, k):
            self._reduction = None  # before the new one: both may not fit
            self._reduction = Reduction(backend, name, buffer, k, self._sizes)
        return self._reduction


class Reduction:
    """The k largest numbers of each row of an output, found where it lies: a plan of one node, bound to the output's buffer."""

    def __init__(self, backend: Backend, name: str, output: Buffer, k: int, sizes: Mapping[str, int]) -> None:
        self._backend, self._name, self._bound = backend, name, output
        self._wanted = (k, tuple(output.shape))
        graph = Graph()
        graph.outputs = [*ops.top_k(graph.leaf(name, output.shape), k=k, name=("top_values", "top_ids"))]
        self._plan = backend.compile(graph, {name: output}, sizes)

    def fits(self, output: Buffer, k: int) -> bool:
        return self._wanted == (k, tuple(output.shape))

    def __call__(self, output: Buffer) -> list[NDArray[Any]]:
        if output is not self._bound:  # a step of another length has its own, and numpy's every step
            self._plan.rebind(self._name, output)
            self._bound = output
        return [self._backend.download(made) for made in self._plan({})]


@contextmanager
def telling(backend: Backend, when: str) -> Iterator[None]:
    """A device's own error becomes one sentence: it was lost, out of memory, a kernel does not compile."""
    try:
        yield
    except TinyLlamaError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) and backend.memory_free() is None:  # the host's memory: not a device's error
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "; a shorter context (-c), smaller batches (-b) or fewer layers (-ngl) take less memory"
        is_full = isinstance(error, MemoryError)
        raise BackendError(f"backend '{backend.name}' failed {when}: {told}{advice if is_full else ''}") from error
