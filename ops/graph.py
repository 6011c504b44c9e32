"""A graph is ops applied to values: what a model's equations leave behind when they are called on Values instead of arrays.

graph = Graph()
x = graph.leaf("x", ("T", 4))          # "T": a size known only when a step runs
w = graph.leaf("w", (8, 4))
with layer(0):
    y = matmul(x, w, name="ffn_up")    # one Node, which makes the Value ffn_up-0 of shape [T, 8]
graph.outputs = [y]
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .op import Op

Dim = int | str  # a number, or the name of a size that a step decides: T tokens in it, S positions in sight, U rows out
Shape = tuple[Dim, ...]

_layer: ContextVar[int | None] = ContextVar("layer", default=None)


@contextmanager
def layer(index: int) -> Iterator[None]:
    """Ops called inside belong to this layer; their values are named after it, `attn_norm` becoming `attn_norm-3`."""
    token = _layer.set(index)
    try:
        yield
    finally:
        _layer.reset(token)


@dataclass(eq=False)
class Value:
    """An edge of the graph: a leaf (an input of the step, a weight, a cache) or what a node makes."""

    graph: Graph
    name: str
    shape: Shape
    dtype: str = "float"  # "float": whatever float the graph computes in; "int"; "weight": float or quantised blocks

    @property
    def told_shape(self) -> str:
        """For a reader: `[T, 576]`."""
        return f"[{', '.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        return f"{self.name}{self.told_shape}"


@dataclass(eq=False)
class Node:
    """One op applied: operands in the order of its signature, attributes, the values it makes, the layer it belongs to."""

    op: Op
    inputs: tuple[Value, ...]
    attrs: dict[str, Any]
    outputs: tuple[Value, ...]
    layer: int | None = None  # None: before the first layer, or after the last

    @property
    def output(self) -> Value:
        """The first of them, and nearly always the only one."""
        return self.outputs[0]

    @property
    def told_attrs(self) -> list[str]:
        """The attributes for a reader: `eps=1e-05`."""
        return [f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in self.attrs.items()]

    @property
    def call(self) -> str:
        """`rmsnorm(l_out-2, blk.3.attn_norm.weight, eps=1e-05)`"""
        return f"{self.op.name}({', '.join([*(v.name for v in self.inputs), *self.told_attrs])})"


@dataclass(eq=False)
class Graph:
    leaves: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)  # in the order of execution
    outputs: list[Value] = field(default_factory=list)  # what a step hands back
    checked: bool = True  # False for the pattern of a fused op, which has no shapes to check
    written_out: bool = False  # True: a fused op that is called leaves the nodes of the ops it is made of
    _names: set[str] = field(default_factory=set)
    _made: dict[Hashable, Graph] = field(default_factory=dict, init=False, repr=False)

    def once(self, what: Hashable, make: Callable[[], Graph]) -> Graph:
        """A graph that is made of this one, made once for as long as its nodes and outputs stay the same."""
        key = (what, tuple(self.nodes), tuple(self.outputs))
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def leaf(self, name: str, shape: Sequence[Dim], dtype: str = "float") -> Value:
        """The leaf of that name, made at the first call."""
        if name not in self.leaves:
            self._names.add(name)
            self.leaves[name] = Value(self, name, tuple(shape), dtype)
        return self.leaves[name]

    def append(self, op: Op, inputs: tuple[Value, ...], attrs: dict[str, Any], names: Sequence[str]) -> tuple[Value, ...]:
        """Record `op` applied to `inputs`, its outputs under these names; ShapeError if they do not fit."""
        shapes = op.infer([v.shape for v in inputs], attrs) if self.checked else ((),) * len(op.outputs)
        outputs = tuple(
            Value(self, self._unique(name), shape, output.dtype)
            for name, shape, output in zip(names, shapes, op.outputs, strict=True)
        )
        self.nodes.append(Node(op, inputs, attrs, outputs, _layer.get()))
        return outputs

    def part(self, nodes: list[Node]) -> Graph:
        """The graph of just these nodes: what they need from outside becomes leaves, what others need of them outputs."""
        return self.once(tuple(nodes), lambda: self._part(nodes))

    def _part(self, nodes: list[Node]) -> Graph:
        made = dict.fromkeys(v for n in nodes for v in n.outputs)
        leaves = {v.name: v for n in nodes for v in n.inputs if v not in made}
        inside = set(nodes)
        wanted = {v for n in self.nodes if n not in inside for v in n.inputs} | set(self.outputs)
        return Graph(leaves, nodes, [v for v in made if v in wanted], self.checked)

    def _unique(self, name: str) -> str:
        if (index := _layer.get()) is not None:
            name = f"{name}-{index}"
        taken, count = name, 1
        while taken in self._names:
            count += 1
            taken = f"{name}.{count}"
        self._names.add(taken)
        return taken

    def __str__(self) -> str:
        return "\n".join(table(self.nodes))


def table(nodes: Iterable[Node]) -> Iterator[str]:
    """The nodes as lines of text: names, shapes, and the call that makes them."""
    for n in nodes:
        names, shapes = (", ".join(told) for told in zip(*((v.name, v.told_shape) for v in n.outputs), strict=True))
        yield f"{names:<20} {shapes:<16} = {n.call}"
