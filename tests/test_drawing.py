"""The picture of a graph: geometry that must hold for any graph, and what a reader must find in a LLaMA's."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise, product
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import (  # isort: skip
    Graph, add, attention, attention_mix, attention_scores, causal_mask, embedding, get_rows, kv_write, layer, matmul,
    merge_heads, mul, rmsnorm, rope, silu, softmax, split_heads, swiglu,
)  # fmt: skip
from ops.errors import OptionError
from ops.fusion import fuse
from ops.op import OPS
from tinyllama.cli import graph as command
from tinyllama.drawing import draw
from tinyllama.drawing.diagram import diagram
from tinyllama.drawing.layout import Extent, Layout, Point, arrange
from tinyllama.drawing.scene import LINE, SPINE, Curve, Rect, Scene, Text, compose

N_LAYER = 4


def llama(prefix: str = "") -> Graph:
    """A LLaMA of SmolLM2's sizes, whose last layer keeps only the rows that are asked for."""
    graph = Graph()
    tokens, positions = graph.leaf(f"{prefix}tokens", ("T",), "int"), graph.leaf(f"{prefix}positions", ("T",), "int")
    rows = graph.leaf("out_ids", ("U",), "int")
    freqs = graph.leaf("rope_freqs", (32,))
    x = embedding(tokens, graph.leaf("token_embd.weight", (49152, 576), "weight"), name="inp_embd")
    for i in range(N_LAYER):

        def weight(name: str, *shape: int, i: int = i):
            return graph.leaf(f"{prefix}blk.{i}.{name}.weight", shape, "weight" if len(shape) > 1 else "float")

        with layer(i):
            h = rmsnorm(x, weight("attn_norm", 576), eps=1e-5, name=f"{prefix}attn_norm")
            q = split_heads(matmul(h, weight("attn_q", 576, 576), name="q"), h=9, name="q_heads")
            k = split_heads(matmul(h, weight("attn_k", 192, 576), name="k"), h=3, name="k_heads")
            v = split_heads(matmul(h, weight("attn_v", 192, 576), name="v"), h=3, name="Vcur")
            q, k = rope(q, positions, freqs, name="Qcur"), rope(k, positions, freqs, name="Kcur")
            keys = kv_write(graph.leaf(f"cache_k_l{i}", ("C", 3, 64)), k, positions, name="k_cache")
            values = kv_write(graph.leaf(f"cache_v_l{i}", ("C", 3, 64)), v, positions, name="v_cache")
            kq = causal_mask(attention_scores(q, keys, name="kq"), positions, scale=0.125, name="kq_masked")
            kqv = attention_mix(softmax(kq, name="kq_soft_max"), values, name="kqv")
            a = matmul(merge_heads(kqv, name="kqv_out"), weight("attn_output", 576, 576), name="attn_out")
            if i == N_LAYER - 1:
                a, x = get_rows(a, rows, name="attn_rows"), get_rows(x, rows, name="inp_rows")
            x = add(x, a, name="ffn_inp")
            h = rmsnorm(x, weight("ffn_norm", 576), eps=1e-5, name="ffn_norm")
            gate = silu(matmul(h, weight("ffn_gate", 1536, 576), name="ffn_gate"), name="ffn_silu")
            gate = mul(gate, matmul(h, weight("ffn_up", 1536, 576), name="ffn_up"), name="ffn_gate_par")
            x = add(x, matmul(gate, weight("ffn_down", 576, 1536), name="ffn_out"), name="l_out")
    x = rmsnorm(x, graph.leaf("output_norm.weight", (576,)), eps=1e-5, name="result_norm")
    graph.outputs = [matmul(x, graph.leaf("token_embd.weight", (49152, 576), "weight"), name="result_output")]
    return graph


GRAPH = llama()
FUSED = fuse(GRAPH, [attention, swiglu])
ALL_FUSED = fuse(GRAPH, [op for op in OPS.values() if op.fused])
AWKWARD = "a<b>&\"c'\x00\x1b\n\ud800" + "W" * 80  # from a damaged or malicious file
PICTURES = {
    "first": (GRAPH, 0), "middle": (GRAPH, 1), "last": (GRAPH, N_LAYER - 1), "model": (GRAPH, None),
    "fused": (FUSED, 1), "fused model": (FUSED, None), "all fused": (ALL_FUSED, 1), "awkward names": (llama(AWKWARD), 1),
}  # fmt: skip


def scene_of(graph: Graph, which: int | None, title: str = "SmolLM2") -> Scene:
    formats = {name: "Q4_1" for name, leaf in graph.leaves.items() if leaf.dtype == "weight"}
    return compose(diagram(graph, which, formats), title, "llama · n_embd 576 · n_head 9 · n_head_kv 3")


@pytest.fixture(params=PICTURES)
def scene(request: pytest.FixtureRequest) -> Scene:
    return scene_of(*PICTURES[request.param])


# --- geometry ---------------------------------------------------------------------------------------------------------

ROUNDING = 1e-6  # pixels: float64 is good for 1e-11 in pictures of some thousand pixels
Area = tuple[float, float, float, float]  # left, top, right, bottom


def overlap(a: Area, b: Area) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def trace(path: list[Point], pieces: int = 16) -> Iterator[Point]:
    """Points along an edge as SVG draws it: `L` where x stays, else `C` with both control points at half the height.

    De Casteljau's algorithm, so that png.py's closed form is not its own witness.
    """
    yield path[0]
    for (x, y), (to_x, to_y) in pairwise(path):
        middle = (y + to_y) / 2
        for t in (i / pieces for i in range(1, pieces + 1)):
            points = [(x, y), (x, middle), (to_x, middle), (to_x, to_y)]
            while len(points) > 1:
                points = [(a + (c - a) * t, b + (d - b) * t) for (a, b), (c, d) in pairwise(points)]
            yield points[0]


def areas(extents: list[Extent], layout: Layout) -> list[Area]:
    return [
        (x - e.left, y - e.height / 2, x + e.right, y + e.height / 2)
        for e, x, y in zip(extents, layout.x, layout.y, strict=True)
    ]


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[Extent], list[tuple[int, int]]]:
    n = draw(st.integers(1, 12))
    size = st.integers(20, 300).map(float)
    extents = [Extent(draw(size), draw(size), draw(size)) for _ in range(n)]
    pairs = list(combinations(range(n), 2))
    edges = draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []
    return extents, edges  # an edge may come twice: mul(x, x)


@given(dags(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_graph_is_laid_out_without_collisions(dag, data):
    extents, edges = dag
    spine = data.draw(st.sampled_from([[], *map(list, edges)]))
    layout = arrange(extents, edges, spine)
    boxes = areas(extents, layout)
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= layout.width
        assert 0 <= top < bottom <= layout.height
    assert len(layout.paths) == len(edges)
    for (u, v), path in zip(edges, layout.paths, strict=True):
        points = list(trace(path))
        assert points[0] == pytest.approx((layout.x[u], boxes[u][3]), abs=ROUNDING)
        assert boxes[v][0] < points[-1][0] < boxes[v][2]
        assert points[-1][1] == pytest.approx(boxes[v][1], abs=ROUNDING)
        assert all(a[1] <= b[1] + ROUNDING for a, b in pairwise(points)), "data flows down"
        inner = [(b[0], b[1] + ROUNDING, b[2], b[3] - ROUNDING) for b in boxes]
        assert not any(b[0] < x < b[2] and b[1] < y < b[3] for x, y in points for b in inner), "through a box"
    assert len({layout.x[u] for u in spine}) <= 1
    if spine:
        assert all(x >= layout.x[spine[0]] for i, x in enumerate(layout.x) if boxes[i][1] == boxes[spine[0]][1])


@pytest.mark.parametrize("name", ["first", "last", "fused"])
def test_the_edges_of_a_llama_layer_do_not_cross(name):
    """A LLaMA layer can be drawn in the plane without crossings (it is series-parallel); so it must be."""
    picture = diagram(*PICTURES[name], {})
    layout = arrange([Extent(80, 200, 46)] * len(picture.boxes), picture.edges, picture.spine)
    lines = [list(pairwise(trace(path, pieces=6))) for path in layout.paths]

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    for one, other in combinations(lines, 2):
        for (a, b), (c, d) in product(one, other):
            assert side(a, b, c) * side(a, b, d) >= -ROUNDING or side(c, d, a) * side(c, d, b) >= -ROUNDING


@given(st.permutations(range(4)))
def test_parallel_chains_are_untangled(order):
    """Four chains of two, the lower boxes given in any order: each stands straight below its own upper one."""
    layout = arrange([Extent(40, 40, 20)] * 8, [(u, 4 + order[u]) for u in range(4)])
    assert all(layout.x[u] == layout.x[4 + order[u]] for u in range(4))


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first", "middle", "last", "fused"])
def test_every_op_and_every_edge_of_the_layer_is_drawn_once(name):
    graph, which = PICTURES[name]
    scene = scene_of(graph, which)
    nodes = [n for n in graph.nodes if n.layer == which]
    shown = Counter(mark.text for mark in scene.marks if isinstance(mark, Text))
    made_here = {v for n in nodes for v in n.outputs}
    made_anywhere = {v for n in graph.nodes for v in n.outputs}
    for n in nodes:
        assert shown[", ".join(v.name for v in n.outputs)] == 1
    for leaf in {v for n in nodes for v in n.inputs} - made_anywhere:
        assert shown[leaf.name] == sum(n.inputs.count(leaf) for n in nodes)  # beside each op that reads it
    within = sum(v in made_anywhere for n in nodes for v in n.inputs)
    leaving = {v for n in graph.nodes if n not in nodes for v in n.inputs if v in made_here}
    curves = [m for m in scene.marks if isinstance(m, Curve) and m.colour in (LINE, SPINE)]
    assert len(curves) == within + len(leaving) + 1  # and the legend's


def test_the_spine_is_the_residual_stream():
    picture = diagram(GRAPH, 1, {})
    assert [picture.boxes[i].name for i in picture.spine] == ["l_out-0", "ffn_inp-1", "l_out-1", "to layer 2"]
    last = diagram(GRAPH, N_LAYER - 1, {})
    names = [last.boxes[i].name for i in last.spine]
    assert names == ["l_out-2", "inp_rows-3", "ffn_inp-3", "l_out-3", "to rmsnorm"]


def test_alike_layers_are_folded_in_the_picture_of_the_model():
    boxes = {box.name: box for box in diagram(GRAPH, None, {"blk.1.attn_q.weight": "Q4_1"}).boxes}
    assert list(boxes) == ["inp_embd", "layer 0", "layers 1 … 2", "layer 3", "result_norm", "result_output"]
    assert boxes["layers 1 … 2"].detail == "2 more alike, 25 ops each"
    weights, caches = boxes["layers 1 … 2"].sides
    assert (weights.name, weights.detail) == ("9 weights each", "Q4_1")
    assert (caches.name, caches.detail) == ("2 caches each", "[C, 3, 64]")


def test_op_boxes_tell_op_shape_and_attributes_and_weights_their_format():
    boxes = {box.name: box for box in diagram(GRAPH, 0, {"blk.0.attn_k.weight": "Q4_1"}).boxes}
    assert (boxes["k-0"].detail, boxes["k-0"].shape) == ("matmul", "[T, 192]")
    assert boxes["k-0"].sides[0].detail == "[192, 576] Q4_1"
    assert boxes["kq_masked-0"].detail == "causal_mask scale=0.125"
    assert boxes["kq_masked-0"].sides[0].detail == "[T] int"
    assert [side.kind for side in boxes["k_cache-0"].sides] == ["cache", "input"]


# --- text -------------------------------------------------------------------------------------------------------------


def test_texts_fit_their_boxes_and_do_not_touch(scene):
    image_font = pytest.importorskip("PIL.ImageFont", reason="Pillow, an optional package, measures the text")

    def area(text: Text) -> Area:
        anchor = {"start": "ls", "end": "rs"}[text.anchor]
        box = image_font.load_default(text.size * 2).getbbox(text.text, anchor=anchor)  # png.py paints at this size
        return text.x + box[0] / 2, text.y + box[1] / 2, text.x + box[2] / 2, text.y + box[3] / 2

    texts = [(mark, area(mark)) for mark in scene.marks if isinstance(mark, Text) and mark.text]
    rects = [m for m in scene.marks if isinstance(m, Rect)]
    for mark, (left, top, right, bottom) in texts:
        assert 0 <= left < right <= scene.width, mark
        assert 0 <= top < bottom <= scene.height, mark
        for r in rects:
            if r.x <= mark.x <= r.x + r.width and r.y <= mark.y <= r.y + r.height:
                assert r.x + 4 <= left < right <= r.x + r.width - 4, mark  # 4: clear of the rounded outline
                assert r.y <= top < bottom <= r.y + r.height, mark
    assert not [(a.text, b.text) for (a, at), (b, bt) in combinations(texts, 2) if overlap(at, bt)]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_svg_is_xml_with_every_mark(name, tmp_path):
    graph, which = PICTURES[name]
    draw(graph, tmp_path / "picture.svg", layer=which, title="R&D <1>")
    root = ElementTree.fromstring((tmp_path / "picture.svg").read_bytes())
    marks = compose(diagram(graph, which, {}), "R&D <1>", "").marks
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].text == "R&D <1>"
    assert [e.text or "" for e in root.iter(f"{root.tag[:-3]}text")] == [m.text for m in marks if isinstance(m, Text)]
    assert len(root) == len(marks) + 2  # the title, the background
    assert list(tmp_path.iterdir()) == [tmp_path / "picture.svg"]


@pytest.mark.parametrize("name", ["model", "awkward names"])
def test_png_has_the_size_and_the_colours_of_the_scene(name, tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow, an optional package, paints PNG files")
    graph, which = PICTURES[name]
    draw(graph, tmp_path / "picture.png", layer=which)
    scene = compose(diagram(graph, which, {}), "", "")
    with image_module.open(tmp_path / "picture.png") as image:
        assert (image.format, image.size) == ("PNG", (2 * scene.width, 2 * scene.height))
        for rect in (m for m in scene.marks if isinstance(m, Rect) and m.height > 20):
            inside = image.getpixel((round(2 * rect.x + 8), round(2 * (rect.y + rect.height / 2))))  # 4 px in: no text
            assert "#{:02x}{:02x}{:02x}".format(*inside) == rect.fill


def test_without_pillow_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(OptionError, match=r'pip install "tinyllama\[docs\]", or choose \.svg'):
        draw(GRAPH, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())
    draw(GRAPH, tmp_path / "picture.svg")


def test_errors_are_sentences(tmp_path):
    with pytest.raises(OptionError, match=r"picture\.jpg: a picture's name must end in \.svg or \.png"):
        draw(GRAPH, tmp_path / "picture.jpg")
    with pytest.raises(OptionError, match="layer 4 is not in this graph; its layers are 0 to 3"):
        draw(GRAPH, tmp_path / "picture.svg", layer=N_LAYER)
    for impossible in (tmp_path / "missing" / "picture.svg", tmp_path / ("n" * 300 + ".svg")):
        with pytest.raises(OptionError, match=r"cannot write .*\.svg: .*; choose another place"):
            draw(GRAPH, impossible)
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(OptionError, match=r"cannot write .*folder\.svg: .*"):
        draw(GRAPH, tmp_path / "folder.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.svg"], "nothing half-written is left"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch):
    config = SimpleNamespace(
        arch="llama", name="SmolLM2", n_layer=N_LAYER, n_embd=576, n_head=9, n_head_kv=3, n_ff=1536, n_vocab=49152
    )
    weight = SimpleNamespace(format=SimpleNamespace(name="Q4_1"))
    model = SimpleNamespace(graph=GRAPH, fused_graph=lambda: FUSED, config=config, leaves={"blk.0.attn_q.weight": weight})
    loader = SimpleNamespace(Model=SimpleNamespace(load=lambda *args, **kwargs: model))
    monkeypatch.setitem(sys.modules, "tinyllama.model", loader)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return lambda *argv: command.run(parser.parse_args(argv))


def test_command_prints_the_graph_as_a_table(run, capsys):
    assert run() == 0
    assert len(capsys.readouterr().out.splitlines()) == len(GRAPH.nodes)
    assert run("--layer", "1", "--fused", "--backend", "numpy") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == sum(n.layer == 1 for n in FUSED.nodes)
    assert sum("= attention(Qcur-1, k_cache-1, v_cache-1, positions, scale=0.125)" in line for line in lines) == 1


def test_command_draws(run, tmp_path):
    assert run("-o", str(tmp_path / "picture.svg")) == 0
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "SmolLM2 · layer 0 of 4" in text
    assert "llama · n_embd 576 · n_head 9 · n_head_kv 3 · n_ff 1536 · n_vocab 49152" in text
    assert "[576, 576] Q4_1" in text


@pytest.mark.parametrize("layer_given", ["4", "-1", "x", "9" * 5000])
def test_command_refuses_a_layer_that_is_not_there(run, layer_given):
    with pytest.raises(OptionError, match="the model has layers 0 to 3; give one of these, or all"):
        run(f"--layer={layer_given}")
