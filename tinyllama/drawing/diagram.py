"""What of a graph is drawn: one layer's ops with what comes in and goes out, or the model with its layers folded up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from ops.errors import OptionError
from ops.graph import Graph, Node, Value


@dataclass(frozen=True)
class Side:
    """A leaf, drawn beside the op that reads it: "weight", "cache" (read and written) or "input"."""

    kind: str
    name: str
    detail: str  # shape and format


@dataclass(frozen=True)
class Box:
    """An op (kind: the file in ops/ that defines it), a folded layer ("layer"), or a neighbour outside ("stub")."""

    kind: str
    name: str
    detail: str
    shape: str = ""
    tip: str = ""
    sides: tuple[Side, ...] = ()


@dataclass(frozen=True)
class Diagram:
    boxes: list[Box]  # in the order of execution
    edges: list[tuple[int, int]]
    spine: list[int]  # the residual stream


def diagram(graph: Graph, layer: int | None, formats: Mapping[str, str]) -> Diagram:
    """One layer's ops, or with None all layers folded. OptionError if the graph has no such layer."""
    runs = _folded(graph) if layer is None else [[n] for n in graph.nodes if n.layer == layer]
    if not runs:
        raise OptionError(f"layer {layer} is not in this graph; its layers are {_span(graph.nodes)}")
    nodes = [n for run in runs for n in run]
    part = graph.part(nodes)
    maker = {v: n for n in graph.nodes for v in n.outputs}

    boxes: list[Box] = []
    source: dict[Value, int] = {}  # the box a value comes from
    edges: list[tuple[int, int]] = []
    for value in part.leaves.values():
        if value in maker:
            source[value] = len(boxes)
            boxes.append(Box("stub", value.name, f"from {_place(maker[value])}", value.told_shape))
    for run in runs:
        arriving = [v for n in run for v in n.inputs if v in source]
        edges += [(source[v], len(boxes)) for v in (arriving if len(run) == 1 else dict.fromkeys(arriving))]
        source |= {v: len(boxes) for n in run for v in n.outputs}
        boxes.append(_op_box(run[0], source, formats) if len(run) == 1 else _layers_box(graph, run, formats))
    inside = set(nodes)
    for value in part.outputs:
        users = [n for n in graph.nodes if value in n.inputs and n not in inside]
        if users:
            edges.append((source[value], len(boxes)))
            boxes.append(Box("stub", f"to {_place(users[0])}", ", ".join(_names(n) for n in users[:3])))
    return Diagram(boxes, edges, _shortest_path(len(boxes), edges))


def _folded(graph: Graph) -> list[list[Node]]:
    """Runs of nodes that make one box each: ops outside of layers, a layer, and the rest of those that are alike."""
    runs: list[list[Node]] = []
    layers = [list(nodes) for _, nodes in groupby(graph.nodes, key=lambda n: n.layer)]
    for _, group in groupby(layers, key=lambda ns: (ns[0].layer is None, [(n.op, _shapes(n)) for n in ns])):
        first, *rest = group
        if first[0].layer is None:
            runs += [[n] for nodes in (first, *rest) for n in nodes]
        else:
            runs += [first, [n for nodes in rest for n in nodes]] if len(rest) > 1 else [first, *rest]
    return runs


def _op_box(node: Node, made: Mapping[Value, int], formats: Mapping[str, str]) -> Box:
    op = node.op
    sides = [_side(node, i, formats) for i, v in enumerate(node.inputs) if v not in made]
    tip = f"{_names(node)} = {node.call}\n" + (op.__doc__ or "").strip().partition("\n")[0]
    kind = op.formula.__module__.rpartition(".")[2]
    return Box(kind, _names(node), " ".join([op.name, *node.told_attrs]), _shapes(node), tip, tuple(sides))


def _layers_box(graph: Graph, run: list[Node], formats: Mapping[str, str]) -> Box:
    """A layer, or several alike, with a count of the leaves that no other layer reads."""
    first, last = run[0].layer, run[-1].layer
    count = len({n.layer for n in run})
    inside = set(run)
    shared = {v for n in graph.nodes if n not in inside for v in n.inputs}
    own = {v: _side(n, i, formats) for n in run for i, v in enumerate(n.inputs) if v not in shared}
    sides = []
    for kind in ("weight", "cache"):
        leaves = [v for v, side in own.items() if side.kind == kind and v.name in graph.leaves]
        told = dict.fromkeys(formats.get(v.name, v.told_shape if kind == "cache" else "") for v in leaves)
        if leaves:
            each = f"{len(leaves) // count} {kind}s{' each' if count > 1 else ''}"
            sides.append(Side(kind, each, ", ".join(filter(None, told))))
    name = f"layer {first}" if count == 1 else f"layers {first} … {last}"
    detail = f"{len(run)} ops" if count == 1 else f"{count} more alike, {len(run) // count} ops each"
    return Box("layer", name, detail, _shapes(run[-1]), sides=tuple(sides))


def _side(node: Node, i: int, formats: Mapping[str, str]) -> Side:
    value, operand = node.inputs[i], node.op.inputs[i]
    kind = "cache" if operand.written else "input" if value.dtype == "int" else "weight"
    stored = formats.get(value.name, "int" if value.dtype == "int" else "")
    return Side(kind, value.name, f"{value.told_shape} {stored}".rstrip())


def _names(node: Node) -> str:
    return ", ".join(v.name for v in node.outputs)


def _shapes(node: Node) -> str:
    return ", ".join(v.told_shape for v in node.outputs)


def _place(node: Node) -> str:
    return node.op.name if node.layer is None else f"layer {node.layer}"


def _span(nodes: Iterable[Node]) -> str:
    layers = [n.layer for n in nodes if n.layer is not None]
    return f"{min(layers)} to {max(layers)}" if layers else "none"


def _shortest_path(n: int, edges: list[tuple[int, int]]) -> list[int]:
    """From the first box to the last by the fewest edges: a residual connection skips what it goes around."""
    came_from: dict[int, int] = {0: 0}
    queue = deque([0])
    while queue:
        u = queue.popleft()
        for a, b in edges:
            if a == u and b not in came_from:
                came_from[b] = u
                queue.append(b)
    path = [n - 1] if n - 1 in came_from else []
    while path and path[-1] != 0:
        path.append(came_from[path[-1]])
    return path[::-1]
