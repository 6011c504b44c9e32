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


def test_a_graph_is_fused_once_for_as_long_as_it_stays_the_same():
    graph = Graph()
    x, gate = graph.leaf("x", ("T", 8)), graph.leaf("gate", ("T", 8))
    graph.outputs = [ops.mul(ops.silu(gate), x)]
    once = fuse(graph, [ops.swiglu])
    assert fuse(graph, [ops.swiglu]) is once
    assert [n.op for n in fuse(graph, []).nodes] == [ops.silu, ops.mul]
    graph.outputs = [*graph.outputs, graph.nodes[0].output]
    assert [n.op for n in fuse(graph, [ops.swiglu]).nodes] == [ops.silu, ops.mul]  # silu is an output now
    graph.outputs = [ops.add(ops.mul(ops.silu(gate), x), x)]
    assert ops.add in [n.op for n in fuse(graph, [ops.swiglu]).nodes]


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
    sizes = {"T": 3, "n": 6, "m": 5, "a": 4, "b": 3, "c": 2, "h": 4, "k": 2, "d": 8, "e": 8, "r": 4, "S": 3, "C": 3}
    attrs = dict.fromkeys(op.attrs, 0.3)
    graph = Graph(written_out=True)
    leaves = [graph.leaf(o.name, [sizes[d] for d in o.dims], o.dtype) for o in op.inputs]
    graph.outputs = [*op.results(op(*leaves, **attrs))]
    assert not any(n.op.fused for n in graph.nodes)
    (node,) = fuse(graph, [op]).nodes
    assert (node.op, node.attrs, list(node.inputs)) == (op, attrs, leaves)
    assert list(node.outputs) == graph.outputs

    rng = np.random.default_rng(0)
    arrays = {o.name: np.arange(3) if o.dtype == "int" else rng.standard_normal([sizes[d] for d in o.dims]) for o in op.inputs}
    step_by_step = {name: array.copy() for name, array in arrays.items()}
    for n in graph.nodes:
        step_by_step[n.output.name] = n.op.formula(*(step_by_step[v.name] for v in n.inputs), **n.attrs)
    for value, expected in zip(graph.outputs, op.results(op(*arrays.values(), **attrs)), strict=True):
        np.testing.assert_array_equal(step_by_step[value.name], expected)
    for o in op.inputs:
        np.testing.assert_array_equal(step_by_step[o.name], arrays[o.name])  # what is written, too


def products(graph: Graph, n: int):
    """n products of a normed x."""
    x = ops.rmsnorm(graph.leaf("x", ("T", 4)), graph.leaf("norm", (4,)), eps=1e-5, name="h")
    return [ops.matmul(x, graph.leaf(f"w{i}", (4, 4), "weight"), name=f"y{i}") for i in range(n)]


def names(graph: Graph) -> list[str]:
    return [", ".join(v.name for v in n.outputs) + f" = {n.op.name}" for n in graph.nodes]


def test_an_op_with_several_outputs_makes_several_values():
    graph = Graph()
    x, weights = graph.leaf("x", ("T", 4)), [graph.leaf(f"w{i}", (2 + i, 4), "weight") for i in range(3)]
    with layer(0):
        named, plain = ops.qkv(x, *weights, name=("q", "k", "v")), ops.qkv(x, *weights)
    assert [str(v) for v in named] == ["q-0[T, 2]", "k-0[T, 3]", "v-0[T, 4]"]
    assert [v.name for v in plain] == ["qkv_q-0", "qkv_k-0", "qkv_v-0"]
    assert str(graph).splitlines()[0].split("=")[0].split("  ")[0] == "q-0, k-0, v-0"
    graph.outputs = [named[1]]
    graph.outputs.append(ops.silu(named[2]))
    assert [v.name for v in graph.part(graph.nodes[:1]).outputs] == ["k-0", "v-0"]


def test_fusion_finds_several_roots_among_more_readers_of_one_value():
    graph = Graph()
    graph.outputs = products(graph, 4)
    assert names(fuse(graph, [ops.qkv])) == ["h = rmsnorm", "y0, y1, y2 = qkv", "y3 = matmul"]
    # the normed x is read by the fourth, so it must stay
    assert names(fuse(graph, [ops.norm_qkv, ops.qkv])) == ["h = rmsnorm", "y0, y1, y2 = qkv", "y3 = matmul"]


def test_fusion_takes_an_inner_value_that_is_read_three_times_inside():
    graph = Graph()
    graph.outputs = products(graph, 3)
    (node,) = fuse(graph, [ops.norm_qkv, ops.qkv, ops.norm_matmul]).nodes
    assert (node.op, node.attrs) == (ops.norm_qkv, {"eps": 1e-5})
    assert [v.name for v in node.inputs] == ["x", "norm", "w0", "w1", "w2"]
    assert list(node.outputs) == graph.outputs


def test_the_fused_node_comes_before_all_readers_of_its_outputs():
    graph = Graph()
    x = graph.leaf("x", ("T", 4))
    made = [ops.silu(ops.matmul(x, graph.leaf(f"w{i}", (4, 4), "weight"), name=f"y{i}"), name=f"z{i}") for i in range(3)]
    graph.outputs = made
    assert names(fuse(graph, [ops.qkv])) == ["y0, y1, y2 = qkv", "z0 = silu", "z1 = silu", "z2 = silu"]


def test_fusion_stays_in_a_layer():
    graph = Graph()
    x = graph.leaf("x", ("T", 4))
    for i in range(3):
        with layer(i):
            graph.outputs.append(ops.matmul(x, graph.leaf(f"w{i}", (4, 4), "weight")))
    assert [n.op.name for n in fuse(graph, [ops.qkv]).nodes] == ["matmul"] * 3


def test_fusion_wants_the_residual_first():
    graph = Graph()
    x, w = graph.leaf("x", ("T", 4)), graph.leaf("w", (4, 4), "weight")
    graph.outputs = [ops.add(x, ops.matmul(x, w)), ops.add(ops.matmul(x, w), x)]
    assert [n.op.name for n in fuse(graph, [ops.matmul_add]).nodes] == ["matmul_add", "matmul", "add"]


def rope_and_write(between=None, before_values=None):
    """As a layer does it. `between`: what happens after the keys are written; `before_values`: makes the values."""
    graph = Graph()
    x, positions, freqs = (graph.leaf(n, s, d) for n, s, d in (
        ("x", ("T", 2, 4), "float"), ("positions", ("T",), "int"), ("freqs", (2,), "float")
    ))  # fmt: skip
    k_cache, v_cache = (graph.leaf(name, ("C", 2, 4)) for name in ("k_cache", "v_cache"))
    q, k = (ops.rope(graph.leaf(n, ("T", 2, 4)), positions, freqs, neox=True, name=n.upper()) for n in ("q", "k"))
    keys = ops.kv_write(k_cache, k, positions, name="keys")
    if between:
        graph.outputs.append(between(graph, q, keys, k_cache, positions))
    values = ops.kv_write(v_cache, before_values(graph) if before_values else x, positions, name="values")
    graph.outputs += [q, keys, values]
    return graph


def test_rope_and_both_caches():
    graph = rope_and_write()
    (node,) = fuse(graph, [ops.rope_kv_write]).nodes
    assert node.attrs == {"neox": True}
    assert [v.name for v in node.outputs] == ["Q", "keys", "values"]


def test_what_touches_a_cache_keeps_its_place():
    def again(graph, q, keys, k_cache, positions):
        return ops.kv_write(k_cache, graph.leaf("more", ("T", 2, 4)), positions, name="again")

    found = names(fuse(rope_and_write(again), [ops.rope_kv_write]))
    assert found == ["Q, keys, values = rope_kv_write", "again = kv_write"]

    def scores(graph, q, keys, k_cache, positions):
        return ops.attention_scores(q, keys, name="kq")

    def late(graph):  # made of what reads the keys
        (kq,) = graph.outputs
        return ops.attention_mix(kq, graph.leaf("other", ("S", 2, 4)), name="x2")

    found = names(fuse(rope_and_write(scores), [ops.rope_kv_write]))
    assert found == ["Q, keys, values = rope_kv_write", "kq = attention_scores"]
    assert len(fuse(rope_and_write(scores, late), [ops.rope_kv_write]).nodes) == 6  # there is no place for all four
