"""The plain plan: a graph as a list of instructions, one kernel after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.errors import ShapeError
from ops.graph import Graph, Node, Value
from ops.tensor import Tensor

from .base import Backend, Buffer, Event, Observer, Progress


@dataclass(frozen=True)
class Instruction:
    """A node ready to run: which slots it reads and fills, and which of them nobody needs after it (`done`)."""

    run: Callable[..., Buffer]
    operands: tuple[int, ...]
    attrs: dict[str, Any]
    results: tuple[int, ...]
    done: tuple[int, ...]
    node: Node
    on_host: bool


class LoopPlan:
    """Values are numbered slots. Weights and caches are bound to theirs once, a step fills in the rest."""

    def __init__(self, backend: Backend, graph: Graph, leaves: Mapping[str, Tensor | Buffer]) -> None:
        graph = backend.fused(graph)
        self._backend = backend
        values = [*graph.leaves.values(), *(v for n in graph.nodes for v in n.outputs)]
        self._slot = {value: slot for slot, value in enumerate(values)}
        self._slot_as_stored: dict[Value, int] = {}  # weights for formulas on the host, which take them as they are
        self.slot_of_leaf = {name: self._slot[value] for name, value in graph.leaves.items()}
        self._inputs = {name: value for name, value in graph.leaves.items() if name not in leaves}
        self.outputs = [self._slot[v] for v in graph.outputs]
        self.program = self._instructions(graph)
        self._bound: list[Buffer] = [None] * (len(self._slot) + len(self._slot_as_stored))
        for i in self.program:
            for value, slot in zip(i.node.inputs, i.operands, strict=True):
                leaf = leaves.get(value.name)
                if isinstance(leaf, Tensor) and slot != self._slot_as_stored.get(value):
                    leaf = backend.resident(leaf, value.dtype)
                self._bound[slot] = leaf
        whole = {  # a weight of which an op touches a few rows, as the embedding does, stays as it is
            value.name: leaves[value.name]
            for i in self.program
            for value, operand in zip(i.node.inputs, i.node.op.inputs, strict=True)
            if operand.dtype == "weight" and operand.name not in i.node.op.touches and value.name in leaves
        }
        self.weights = [leaf for leaf in whole.values() if isinstance(leaf, Tensor)]

    def _instructions(self, graph: Graph) -> list[Instruction]:
        kernels = {n.op: self._backend.kernel_of(n.op) for n in graph.nodes}
        last_use = {v: n for n in graph.nodes for v in n.inputs}
        keep = set(graph.outputs) | set(graph.leaves.values())
        return [
            Instruction(
                run=kernels[n.op] or self._backend.on_host(n.op),
                operands=tuple(self._operand(v, kernels[n.op] is None) for v in n.inputs),
                attrs=n.attrs,
                results=tuple(self._slot[v] for v in n.outputs),
                done=tuple(self._slot[v] for v in set(n.inputs) - keep if last_use[v] is n),
                node=n,
                on_host=kernels[n.op] is None,
            )
            for n in graph.nodes
        ]

    def _operand(self, value: Value, on_host: bool) -> int:
        if not (on_host and value.dtype == "weight"):
            return self._slot[value]
        return self._slot_as_stored.setdefault(value, len(self._slot) + len(self._slot_as_stored))

    def warm_up(self, progress: Progress) -> None:
        self._backend.warm_up(progress(self.weights, "preparing weights"))

    def rebind(self, name: str, buffer: Buffer) -> None:
        self._bound[self.slot_of_leaf[name]] = buffer

    def __call__(self, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None) -> list[Buffer]:
        values = self.start(inputs)
        for i in self.program:
            self.run(i, values, observe)
        return [values[slot] for slot in self.outputs]

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> list[Buffer]:
        """The values of a step, by slot, before the first instruction."""
        sizes_of(self._inputs, inputs)
        values = self._bound.copy()
        for name, array in inputs.items():
            values[self.slot_of_leaf[name]] = self._backend.upload(array)
        return values

    def run(self, i: Instruction, values: list[Buffer], observe: Observer | None = None) -> None:
        """Carry out one instruction: its results among the values, those that nobody needs any more gone."""
        operands = [values[slot] for slot in i.operands]
        made = i.run(*operands, **i.attrs) if observe is None else self._observed(i, operands, observe)
        for slot, value in zip(i.results, i.node.op.results(made), strict=True):
            values[slot] = value
        for slot in i.done:  # memory that is still warm in the cache serves the next node
            values[slot] = None

    def _observed(self, i: Instruction, operands: list[Buffer], observe: Observer) -> Any:
        began = perf_counter()
        made = i.run(*operands, **i.attrs)
        self._backend.synchronize()
        seconds = perf_counter() - began
        observe(Event(i.node, operands, [*i.node.op.results(made)], seconds, self._backend, i.on_host))
        return made


def live_bytes(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Bytes of the values that are needed at once, at most, in a step of these sizes; leaves are not counted."""
    sizes = {"S": sizes["C"], **sizes}
    last_use = {v: i for i, n in enumerate(graph.nodes) for v in n.inputs}
    ends: Counter[int] = Counter()
    live = most = 0
    for i, node in enumerate(graph.nodes):
        for value, output in zip(node.outputs, node.op.outputs, strict=True):
            if output.name not in node.op.views:
                size = 4 * prod(sizes[d] if isinstance(d, str) else d for d in value.shape)
                live += size
                ends[last_use.get(value, len(graph.nodes))] += size
        most = max(most, live)
        live -= ends[i]
    return most


def sizes_of(wanted: Mapping[str, Value], inputs: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """What the letters of the inputs' shapes stand for in a step. ShapeError if these are not what the graph takes."""
    if wanted.keys() != inputs.keys():
        told = (", ".join(sorted(names)) or "nothing" for names in (wanted, inputs))
        raise ShapeError("a step of this graph takes {}, and was given {}".format(*told))
    sizes: dict[str, int] = {}
    for name, value in wanted.items():
        shape = np.shape(inputs[name])
        expected = [sizes.get(d, d) if isinstance(d, str) else d for d in value.shape]
        sizes |= {d: n for d, n in zip(expected, shape, strict=False) if isinstance(d, str)}
        if [sizes.get(d, d) if isinstance(d, str) else d for d in expected] != list(shape):
            raise ShapeError(f"{name} has the shape {list(shape)}, expected [{', '.join(map(str, expected))}]")
    return sizes
