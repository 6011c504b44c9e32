"""Memory for what lies between the ops of a graph, planned before the first step.

buffers    for a step's inputs and for what its nodes make, shared by lifetime
rooms      for what the launches of one node hand on to each other, the same for all nodes
tables     for what a step of one token is told that is one launch (steps.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import cast

import numpy as np

from ops.graph import Dim, Graph, Node, Value

from .launch import ROOMS
from .lifetimes import Lifetime, Shared, share
from .runtime import Limits
from .steps import table_bytes

Sizes = Mapping[str, int]

LAUNCHES = 2  # of a node, on an average not more


def scratch(graph: Graph, inputs: Sequence[Value], sizes: Sizes) -> Shared:
    """Buffers for a step's inputs and for what its nodes make."""
    moment = {v: i for i, n in enumerate(graph.nodes) for v in n.outputs}
    root = {v: v for v in graph.leaves.values()}
    for node in graph.nodes:
        root |= {v: v for v in node.outputs} | {v: root[viewed] for v, viewed in views(node)}
    last_use = {root[v]: i for i, n in enumerate(graph.nodes) for v in n.inputs}
    last_use |= {root[v]: len(graph.nodes) for v in graph.outputs}
    last_use |= {v: len(graph.nodes) for v in inputs if v.dtype == "int"}  # kernels find their way by them: never overwritten
    known = largest(sizes)
    values = own_values(graph, inputs)
    return share(
        [Lifetime(4 * int(np.prod(sized(v.shape, known))), moment.get(v, 0), last_use.get(v, moment.get(v, 0))) for v in values]
    )


def rooms(limits: Limits, graph: Graph, sizes: Sizes) -> list[int]:
    """Bytes that launches of one node need between them: the most that any of them wants. One computes after the other."""
    known = largest(sizes)
    wanted = []
    for node in graph.nodes:
        if node.op.name in ROOMS:
            shapes = [sized(v.shape, known) for v in (*node.inputs, *node.outputs)]
            wanted.append(ROOMS[node.op.name](limits, *shapes, **node.attrs))
    return [max(sizes) for sizes in zip_longest(*wanted, fillvalue=0)]


def table(limits: Limits, graph: Graph) -> int:
    """Bytes of what a step of one token is told that is one launch. There are two: one for steps whose logits are wanted."""
    return table_bytes(LAUNCHES * len(graph.nodes)) if limits.integers else 0


def scratch_bytes(limits: Limits, graph: Graph, sizes: Sizes) -> int:
    """Bytes of all this, for a graph that is fused and whose inputs are the leaves that differ from step to step."""
    inputs = [v for v in graph.leaves.values() if any(isinstance(d, str) and d != "C" for d in v.shape)]
    return sum(scratch(graph, inputs, sizes).sizes) + sum(rooms(limits, graph, sizes)) + 2 * table(limits, graph)


def largest(sizes: Sizes) -> dict[str, int]:
    """S, in a graph that has it, may become as large as a cache is."""
    return {"S": sizes.get("C", sizes.get("T", 1)), "C": 1, **sizes}


def own_values(graph: Graph, inputs: Iterable[Value]) -> list[Value]:
    """The values that need memory of the plan's: inputs, and results that are no views."""
    viewing = {v for n in graph.nodes for v, _ in views(n)}
    return [*inputs, *(v for n in graph.nodes for v in n.outputs if v not in viewing)]


def views(node: Node) -> list[tuple[Value, Value]]:
    """The node's outputs that are memory of operands: of each, which operand it is."""
    operands = dict(zip((o.name for o in node.op.inputs), node.inputs, strict=True))
    outputs = zip(node.op.outputs, node.outputs, strict=True)
    return [(value, operands[node.op.views[o.name]]) for o, value in outputs if o.name in node.op.views]


def sized(shape: Sequence[Dim], sizes: Sizes) -> tuple[int, ...]:
    """A shape in a step. A size that the step does not tell stays a letter: no launch may depend on it."""
    return tuple(cast(int, sizes.get(d, d)) if isinstance(d, str) else d for d in shape)
