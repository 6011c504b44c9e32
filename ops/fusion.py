"""Rewrite a graph with fused ops: wherever the formula of a fused op occurs, one node takes its place.

The formula of a fused op is written with other ops. Run on Values it is a small graph, and that graph is the pattern. So the
definition, the decomposition for backends without a kernel, and what fusion looks for are one piece of code.

What a pattern matches is one layer's. What it makes on the way nobody else may need; its outputs, the roots, go on as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nextafter
from typing import Any

from .graph import Graph, Node, Value
from .op import Op


@dataclass(frozen=True)
class Hole:
    """Stands for an attribute of the fused op in its pattern: matches any value, everywhere the same."""

    name: str


def fuse(graph: Graph, ops: Iterable[Op]) -> Graph:
    """The same graph with every occurrence of these fused ops' formulas replaced by one node each, the longest first."""
    wanted = tuple(ops)
    return graph.once(wanted, lambda: _fused(graph, wanted))


def _fused(graph: Graph, ops: Iterable[Op]) -> Graph:
    patterns = [(op, _pattern(op)) for op in ops]
    for op, pattern in sorted(patterns, key=lambda p: -len(p[1].nodes)):
        graph = replace(graph, nodes=_rewrite(graph, op, pattern))
    return graph


def _pattern(op: Op) -> Graph:
    """The formula as a graph, down to ops that are not fused."""
    pattern = Graph(checked=False, written_out=True)
    leaves = [pattern.leaf(operand.name, ()) for operand in op.inputs]
    pattern.outputs = [*op.results(op.formula(*leaves, **{name: Hole(name) for name in op.attrs}))]
    return pattern


def _rewrite(graph: Graph, op: Op, pattern: Graph) -> list[Node]:
    order, made = _Order(graph), {v: n for n in pattern.nodes for v in n.outputs}
    inner = made.keys() - set(pattern.outputs)
    first = made[pattern.outputs[0]]
    for start in graph.nodes:
        if start.op is not first.op or start not in order.place:
            continue
        for match in Match().extended(first, start, pattern.outputs[1:], made, order):
            inputs, outputs = (tuple(match.values[v] for v in of) for of in (pattern.leaves.values(), pattern.outputs))
            attrs = {name: value for name, value in match.attrs.items() if value is not None}  # None: left at its default
            node, place = Node(op, inputs, attrs, outputs, start.layer), order.place_for(match.nodes)
            is_hidden = all(order.is_inside(match.values[v], match.nodes) for v in inner)
            if is_hidden and place is not None and order.writes_apart(node):
                order.substitute(match.nodes, node, place)
                break
    return sorted(order.place, key=order.place.__getitem__)


@dataclass
class Match:
    """Where a pattern was found, or a part of it: what its values stand for, the attributes of its holes, its nodes."""

    values: dict[Value, Value] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    nodes: set[Node] = field(default_factory=set)

    def extended(
        self, wanted: Node, found: Node, roots: Sequence[Value], made: dict[Value, Node], order: _Order
    ) -> Iterator[Match]:
        """Every match of `wanted` at `found` and of the further roots, each among the readers of what is known by then."""
        match = Match(self.values.copy(), self.attrs.copy(), self.nodes.copy())
        if not match._has_node(wanted, found, made, order):
            return
        roots = [root for root in roots if root not in match.values]
        if not roots:
            yield match
            return
        wanted = made[roots[0]]
        known = [order.readers[match.values[v]] for v in wanted.inputs if v in match.values]
        for node in min(known, key=len, default=[]):
            if node.op is wanted.op and node.layer == found.layer and node in order.place:
                yield from match.extended(wanted, node, roots[1:], made, order)

    def _has_node(self, wanted: Node, found: Node | None, made: dict[Value, Node], order: _Order) -> bool:
        if found is None or found.op is not wanted.op or found in self.nodes:
            return False
        if any(found.layer != node.layer for node in self.nodes):
            return False
        for name, value in wanted.attrs.items():
            seen = found.attrs.get(name)
            if (self.attrs.setdefault(value.name, seen) if isinstance(value, Hole) else value) != seen:
                return False
        self.nodes.add(found)
        self.values.update(zip(wanted.outputs, found.outputs, strict=True))
        return all(self._has_value(a, b, made, order) for a, b in zip(wanted.inputs, found.inputs, strict=True))

    def _has_value(self, wanted: Value, found: Value, made: dict[Value, Node], order: _Order) -> bool:
        if wanted not in self.values:
            if wanted not in made:  # a leaf of the pattern: anything, but the same thing everywhere
                self.values[wanted] = found
            elif not self._has_node(made[wanted], order.maker.get(found), made, order):
                return False
        return self.values[wanted] is found


class _Order:
    """The nodes of a graph in their order, and what holds them there: who makes and who reads a value, who touches a memory."""

    def __init__(self, graph: Graph) -> None:
        self.place: dict[Node, float] = {}
        self.maker: dict[Value, Node] = {}
        self.readers: dict[Value, list[Node]] = defaultdict(list)
        self._wanted = set(graph.outputs)
        self._memory: dict[Value, Value] = {}  # of a view: the value whose memory it is
        for node in graph.nodes:
            for output, value in zip(node.op.outputs, node.outputs, strict=True):
                if output.name in node.op.views:
                    viewed = _operand(node, node.op.views[output.name])
                    self._memory[value] = self._memory.get(viewed, viewed)
        self._touching: dict[Value, list[Node]] = {m: [] for n in graph.nodes for m in self._written(n)}  # by memory
        for i, node in enumerate(graph.nodes):
            self._put(node, i)

    def _put(self, node: Node, place: float) -> None:
        self.place[node] = place
        self.maker.update(dict.fromkeys(node.outputs, node))
        for value in dict.fromkeys(node.inputs):
            self.readers[value].append(node)
        for memory in self._touched(node):
            self._touching[memory].append(node)

    def substitute(self, nodes: set[Node], node: Node, place: float) -> None:
        """One node in the place of several."""
        for old in nodes:
            del self.place[old]
        self._put(node, place)

    def is_inside(self, value: Value, nodes: set[Node]) -> bool:
        """Does nobody but these nodes read it?"""
        return value not in self._wanted and all(n in nodes or n not in self.place for n in self.readers[value])

    def writes_apart(self, node: Node) -> bool:
        """Does no operand that it writes share its memory with another? What happened one by one now happens at once."""
        memories = [self._memory.get(v, v) for v in node.inputs]
        return all(memories.count(memory) == 1 for memory in self._written(node))

    def place_for(self, nodes: set[Node]) -> float | None:
        """Where one node may stand for these: behind all they must follow, before all that must follow them. None: nowhere."""
        after, before = -inf, inf
        for node in nodes:
            for other in self._bound_to(node):
                if other not in nodes and other in self.place:
                    if self.place[other] < self.place[node]:
                        after = max(after, self.place[other])
                    else:
                        before = min(before, self.place[other])
        last = max(self.place[node] for node in nodes)
        place = last if last < before else nextafter(before, -inf)
        return place if place > after else None

    def _bound_to(self, node: Node) -> Iterator[Node]:
        """Those before or after which a node must stay: who made what it reads, who reads what it makes, and of a memory that
        one of the two writes, who touches it."""
        yield from (self.maker[v] for v in node.inputs if v in self.maker)
        for value in node.outputs:
            yield from self.readers[value]
        for memory in self._touched(node):
            for other in self._touching[memory]:
                if memory in self._written(node) or memory in self._written(other):
                    yield other

    def _touched(self, node: Node) -> set[Value]:
        """The memories it reads or writes, of those that are written at all."""
        return {self._memory.get(v, v) for v in node.inputs} & self._touching.keys()

    def _written(self, node: Node) -> set[Value]:
        written = (v for v, operand in zip(node.inputs, node.op.inputs, strict=True) if operand.written)
        return {self._memory.get(v, v) for v in written}


def _operand(node: Node, name: str) -> Value:
    return next(v for v, operand in zip(node.inputs, node.op.inputs, strict=True) if operand.name == name)
