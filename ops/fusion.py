"""Rewrite a graph with fused ops: wherever the formula of a fused op occurs, one node takes its place.

The formula of a fused op is written with other ops. Run on Values it is a small graph, and that graph is the pattern. So the
definition, the decomposition for backends without a kernel, and what fusion looks for are one piece of code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from .graph import Graph, Node, Value
from .op import Op


@dataclass(frozen=True)
class Hole:
    """Stands for an attribute of the fused op in its pattern: matches any value, everywhere the same."""

    name: str


@dataclass
class Match:
    """Where a pattern was found: the values of its leaves, the attributes of its holes, the nodes it swallows."""

    values: dict[Value, Value] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    nodes: set[Node] = field(default_factory=set)


def fuse(graph: Graph, ops: Iterable[Op]) -> Graph:
    """The same graph with every occurrence of these fused ops' formulas replaced by one node each, the longest first."""
    patterns = [(op, *_pattern(op)) for op in ops]
    for op, pattern, root in sorted(patterns, key=lambda p: -len(p[1].nodes)):
        graph = replace(graph, nodes=_rewrite(graph, op, pattern, root))
    return graph


def _pattern(op: Op) -> tuple[Graph, Value]:
    """The formula as a graph, and the value it ends in."""
    pattern = Graph(checked=False)
    leaves = [pattern.leaf(operand.name, ()) for operand in op.inputs]
    return pattern, op.formula(*leaves, **{name: Hole(name) for name in op.attrs})


def _rewrite(graph: Graph, op: Op, pattern: Graph, root: Value) -> list[Node]:
    leaves = list(pattern.leaves.values())
    wanted_node = {n.output: n for n in pattern.nodes}
    found_node = {n.output: n for n in graph.nodes}
    uses = Counter(v for n in graph.nodes for v in n.inputs) + Counter(graph.outputs)

    def matches(wanted: Value, found: Value, match: Match) -> bool:
        if wanted not in wanted_node:  # a leaf of the pattern: anything, but the same thing everywhere
            return match.values.setdefault(wanted, found) is found
        w, f = wanted_node[wanted], found_node.get(found)
        if f is None or f.op is not w.op or (wanted is not root and uses[found] > 1):
            return False  # a value that someone else needs too must stay
        for name, value in w.attrs.items():
            seen = f.attrs.get(name)
            if (match.attrs.setdefault(value.name, seen) if isinstance(value, Hole) else value) != seen:
                return False
        match.nodes.add(f)
        return all(matches(a, b, match) for a, b in zip(w.inputs, f.inputs, strict=True))

    gone: set[Node] = set()
    fused: dict[Node, Node] = {}
    for node in graph.nodes:
        match = Match()
        if matches(root, node.output, match):
            gone |= match.nodes
            fused[node] = Node(op, tuple(match.values[v] for v in leaves), match.attrs, node.output, node.layer)
    return [fused.get(n, n) for n in graph.nodes if n in fused or n not in gone]
