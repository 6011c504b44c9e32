"""Graphs: recording, naming, cutting in parts, and fusion."""

from __future__ import annotations

import numpy as np
import pytest

import ops
from ops.fusion import fuse
from ops.graph import Graph, layer
from ops.op import OPS


def feed_forward(graph: Graph):
    x, w = graph.leaf("x", ("T", 4)), graph.leaf("w", (4, 4), "weight")
    return ops.mul(ops.silu(ops.matmul(x, w), name="gate"), x, name="out")


def test_called_on_values_an_op_records_a_node():
    graph = Graph()
    graph.outputs = [feed_forward(graph)]
    assert [n.op.name for n in graph.nodes] == ["matmul", "silu", "mul"]
    assert graph.outputs[0].shape == ("T", 4)
    assert str(graph).splitlines()[-1].split() == ["out", "[T,", "4]", "=", "mul(gate,", "x)"]


def test_sizes_stay_symbolic_where_a_step_decides_them():
    graph = Graph()
    cache, x = graph.leaf("cache", ("C", 2, 8)), graph.leaf("x", ("T", 2, 8))
    seen = ops.kv_write(cache, x, graph.leaf("positions", ("T",), "int"))
    assert seen.shape == ("S", 2, 8)
    q = graph.leaf("q", ("T", 6, 8))
    assert ops.attention_scores(q, seen).shape == (6, "T", "S")
    assert ops.merge_heads(q).shape == ("T", 48)


def test_values_are_named_after_their_layer_and_unique():
    graph = Graph()
    x = graph.leaf("x", ("T", 4))
    with layer(3):
        a, b, c = ops.silu(x, name="h"), ops.silu(x, name="h"), ops.silu(x)
    assert [v.name for v in (a, b, c, ops.silu(x))] == ["h-3", "h-3.2", "silu-3", "silu"]
    assert [n.layer for n in graph.nodes] == [3, 3, 3, None]


def test_part_has_what_it_needs_as_leaves_and_what_others_need_as_outputs():
    graph = Graph()
    graph.outputs = [feed_forward(graph)]
    first, last = graph.part(graph.nodes[:1]), graph.part(graph.nodes[1:])
    assert list(first.leaves) == ["x", "w"]
    assert [v.name for v in first.outputs] == ["matmul"]
    assert list(last.leaves) == ["matmul", "x"]
    assert [v.name for v in last.outputs] == ["out"]


def attention_graph(**attrs):
    graph = Graph()
    q, keys = graph.leaf("q", ("T", 4, 8)), graph.leaf("keys", ("S", 2, 8))
    values, positions = graph.leaf("values", ("S", 2, 8)), graph.leaf("positions", ("T",), "int")
    scores = ops.causal_mask(ops.attention_scores(q, keys), positions, **attrs)
    out = ops.attention_mix(ops.softmax(scores, name="p"), values, name="kqv")
    graph.outputs = [out]
    return graph


def test_fusion_finds_the_formula_and_its_attributes():
    fused = fuse(attention_graph(scale=0.25), [OPS["attention"]])
    (node,) = fused.nodes
    assert node.op is ops.attention
    assert [v.name for v in node.inputs] == ["q", "keys", "values", "positions"]
    assert node.attrs == {"scale": 0.25}
    assert node.output.name == "kqv"


def test_fusion_leaves_alone_what_someone_else_needs():
    graph = attention_graph(scale=0.25)
    graph.outputs.append(next(n.output for n in graph.nodes if n.output.name == "p"))
    assert len(fuse(graph, [OPS["attention"]]).nodes) == 4

    graph = Graph()
    gate, up = graph.leaf("gate", ("T", 4)), graph.leaf("up", ("T", 4))
    bent = ops.silu(gate)
    graph.outputs = [ops.add(ops.mul(bent, up), bent)]  # silu's value is used twice
    assert [n.op.name for n in fuse(graph, [OPS["swiglu"]]).nodes] == ["silu", "mul", "add"]


def test_fusion_wants_operands_in_their_places():
    graph = Graph()
    gate, up = graph.leaf("gate", ("T", 4)), graph.leaf("up", ("T", 4))
    graph.outputs = [ops.mul(up, ops.silu(gate))]
    assert [n.op.name for n in fuse(graph, [OPS["swiglu"]]).nodes] == ["silu", "mul"]


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.fused], ids=lambda op: op.name)
def test_a_fused_op_is_found_in_its_own_formula_and_means_the_same(op):
    sizes = {"T": 3, "n": 6, "h": 4, "k": 2, "d": 8, "e": 8, "S": 3}
    attrs = dict.fromkeys(op.attrs, 0.3)
    graph = Graph()
    leaves = [graph.leaf(o.name, [sizes[d] for d in o.dims], o.dtype) for o in op.inputs]
    graph.outputs = [op.formula(*leaves, **attrs)]
    (node,) = fuse(graph, [op]).nodes
    assert (node.op, node.attrs, list(node.inputs)) == (op, attrs, leaves)

    rng = np.random.default_rng(0)
    arrays = {o.name: np.arange(3) if o.dtype == "int" else rng.standard_normal([sizes[d] for d in o.dims]) for o in op.inputs}
    step_by_step = dict(arrays)
    for n in graph.nodes:
        step_by_step[n.output.name] = n.op.formula(*(step_by_step[v.name] for v in n.inputs), **n.attrs)
    np.testing.assert_array_equal(step_by_step[graph.outputs[0].name], op(*arrays.values(), **attrs))
