"""The finished picture as rectangles, texts, curves and triangles, in pixels: what svg.py writes and png.py paints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .diagram import Box, Diagram, Side
from .layout import Extent, Layout, Point, arrange

MARGIN, PAD = 28.0, 10.0
SIDE_STEP = 25.0  # from one side box to the next
NAME, SMALL = 13.0, 11.0  # sizes of type
INK, QUIET, SPINE, LINE = "#0f172a", "#64748b", "#1e293b", "#94a3b8"
BACKGROUND = "#fcfcfd"

# An op is coloured by the file of ops/ that defines it: (legend, fill, stroke).
COLOURS = {
    "matmul": ("matmul", "#dbeafe", "#2563eb"),
    "norm": ("norm", "#dcfce7", "#16a34a"),
    "rope": ("rope", "#ede9fe", "#7c3aed"),
    "attention": ("attention", "#ffedd5", "#ea580c"),
    "softmax": ("attention", "#ffedd5", "#ea580c"),
    "activation": ("activation", "#fce7f3", "#db2777"),
    "kv_cache": ("cache", "#ccfbf1", "#0d9488"),
    "heads": ("view", "#f1f5f9", "#64748b"),
    "elementwise": ("elementwise", "#fef9c3", "#ca8a04"),
    "embedding": ("rows of a table", "#e0f2fe", "#0284c7"),
    "fused": ("several in one", "#f3e8ff", "#9333ea"),
    "layer": ("layer", "#e0e7ff", "#4f46e5"),
    "stub": ("outside of the layer", "#ffffff", "#cbd5e1"),
    "weight": ("weight or constant", "#ffffff", "#2563eb"),
    "cache": ("key/value cache", "#ffffff", "#0d9488"),
    "input": ("input of the step", "#ffffff", "#a16207"),
}
OTHER = ("other op", "#f5f5f4", "#78716c")

SYMBOLS = {
    "T": "T: tokens in the step (a prompt's, then one at a time)",
    "S": "S: positions in sight, those in the cache and the step's own",
    "C": "C: places allocated in the cache",
    "U": "U: rows whose logits are wanted",
}


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str
    radius: float = 6.0  # of the corners
    tip: str = ""  # shown where a pointer rests on it


@dataclass(frozen=True)
class Text:
    x: float
    y: float  # of the baseline
    text: str
    size: float
    colour: str
    anchor: str = "start"  # or "end": x is where the text ends


@dataclass(frozen=True)
class Curve:
    points: Sequence[Point]  # straight from one to the next where x or y stays, an S where both change
    colour: str
    width: float


@dataclass(frozen=True)
class Triangle:
    points: tuple[Point, Point, Point]
    colour: str


Mark = Rect | Text | Curve | Triangle


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    title: str
    marks: list[Mark]


def text_width(text: str, size: float) -> float:
    """Pixels that a text takes at most, in the widest of the usual sans-serif fonts (DejaVu Sans)."""
    return size * sum(
        0.42 if c in " .,:;'|!iIjlft()[]-" else 1.0 if c in "mwMW@%…" or c > "\u02ff" else 0.8 if c.isupper() else 0.65
        for c in text
    )


def clip(text: str, length: int = 48) -> str:
    """Names come from files: no control characters, which XML forbids, and no more than a box can hold."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= length else text[: length - 1] + "…"


def compose(diagram: Diagram, title: str, subtitle: str) -> Scene:
    """Heading, legend, the laid out diagram, and what the symbols in the shapes mean."""
    sizes = [_box_size(box) for box in diagram.boxes]
    width = max(width for width, _, _ in sizes)  # one for all, or columns look ragged
    extents = [Extent(width / 2, width / 2 + (PAD * 2 + side if side else 0.0), height) for _, side, height in sizes]
    layout = arrange(extents, diagram.edges, diagram.spine)
    title, subtitle = clip(title, 90), clip(subtitle, 120)
    inner = max(layout.width, text_width(title, 20), text_width(subtitle, 12), 560.0)

    marks: list[Mark] = [Text(MARGIN, MARGIN + 18, title, 20, INK), Text(MARGIN, MARGIN + 38, subtitle, 12, QUIET)]
    y = _legend(marks, diagram, inner, MARGIN + 66)
    left, top = MARGIN + (inner - layout.width) / 2, y + 34
    _edges(marks, diagram, layout, left, top)
    for box, (_, side, height), x, middle in zip(diagram.boxes, sizes, layout.x, layout.y, strict=True):
        _box(marks, box, left + x - width / 2, top + middle - height / 2, width, side, height)
    y = top + layout.height + 20
    shapes = " ".join(text for box in diagram.boxes for text in (box.shape, *(side.detail for side in box.sides)))
    for symbol, meaning in SYMBOLS.items():
        if symbol in re.findall(r"\w+", shapes):
            marks.append(Text(MARGIN, y := y + 18, meaning, SMALL, QUIET))
    return Scene(round(inner + 2 * MARGIN), round(y + MARGIN), title, marks)


def _box_size(box: Box) -> tuple[float, float, float]:
    """Width, width of the side boxes (0: none), height."""
    name = text_width(clip(box.name), NAME) + (16 + text_width(clip(box.shape), SMALL) if box.shape else 0)
    width = max(name, text_width(clip(box.detail), SMALL), 120.0) + 2 * PAD
    texts = [(text_width(clip(side.name), SMALL), text_width(clip(side.detail), SMALL)) for side in box.sides]
    side = max((max(pair) if len(texts) == 1 else sum(pair) + PAD for pair in texts), default=-2 * PAD) + 2 * PAD
    return width, side, max(46.0, SIDE_STEP * len(texts) - 3)


def _box(marks: list[Mark], box: Box, x: float, y: float, width: float, side_width: float, height: float) -> None:
    _, fill, stroke = COLOURS.get(box.kind, OTHER)
    middle, right = y + height / 2, x + width
    for i, side in enumerate(box.sides):
        centre = middle + SIDE_STEP * (i - (len(box.sides) - 1) / 2)
        _side(marks, side, right, centre, side_width, alone=len(box.sides) == 1)
    tip = "\n".join(clip(line, 200) for line in box.tip.split("\n"))
    marks.append(Rect(x, y, width, height, fill, stroke, tip=tip))
    marks.append(Text(x + PAD, middle - 3, clip(box.name), NAME, INK))
    marks.append(Text(right - PAD, middle - 3, clip(box.shape), SMALL, QUIET, "end"))
    marks.append(Text(x + PAD, middle + 14, clip(box.detail), SMALL, QUIET if box.kind == "stub" else stroke))


def _side(marks: list[Mark], side: Side, x: float, y: float, width: float, alone: bool) -> None:
    """Two lines where there is room for two, else one; the connector runs from the box's right edge x."""
    _, fill, colour = COLOURS[side.kind]
    left, half = x + 2 * PAD, 18.0 if alone else (SIDE_STEP - 3) / 2
    marks.append(Curve([(x, y), (left, y)], colour, 1.2))
    marks.append(Triangle(((x, y), (x + 7, y - 4), (x + 7, y + 4)), colour))
    if side.kind == "cache":  # read and written: an arrow at both ends
        marks.append(Triangle(((left, y), (left - 7, y - 4), (left - 7, y + 4)), colour))
    marks.append(Rect(left, y - half, width, 2 * half, fill, colour))
    marks.append(Text(left + PAD, y - 3 if alone else y + 4, clip(side.name), SMALL, INK))
    if alone:
        marks.append(Text(left + PAD, y + 11, clip(side.detail), SMALL, QUIET))
    else:
        marks.append(Text(left + width - PAD, y + 4, clip(side.detail), SMALL, QUIET, "end"))


def _edges(marks: list[Mark], diagram: Diagram, layout: Layout, left: float, top: float) -> None:
    spine = set(zip(diagram.spine, diagram.spine[1:], strict=False))
    for edge, path in sorted(zip(diagram.edges, layout.paths, strict=True), key=lambda pair: pair[0] in spine):
        colour, width, head = (SPINE, 4.0, 11.0) if edge in spine else (LINE, 1.6, 8.0)
        points = [(left + x, top + y) for x, y in path]
        x, y = points[-1]
        marks.append(Curve([*points[:-1], (x, y - head / 2)], colour, width))
        marks.append(Triangle(((x, y), (x - head / 1.8, y - head), (x + head / 1.8, y - head)), colour))


def _legend(marks: list[Mark], diagram: Diagram, room: float, y: float) -> float:
    """One swatch a kind that occurs, in as many lines as needed; the baseline of the last."""
    kinds = {box.kind for box in diagram.boxes} | {side.kind for box in diagram.boxes for side in box.sides}
    entries = {label: (fill, stroke) for kind, (label, fill, stroke) in COLOURS.items() if kind in kinds}
    if kinds - set(COLOURS):
        entries[OTHER[0]] = OTHER[1:]
    x = MARGIN
    for label, (fill, stroke) in [*entries.items(), ("residual stream", ("", ""))]:
        width = 22 + text_width(label, SMALL)
        if x + width > MARGIN + room:
            x, y = MARGIN, y + 20
        if fill:
            marks.append(Rect(x, y - 10, 14, 12, fill, stroke, 3.0))
        else:
            marks.append(Curve([(x, y - 4), (x + 16, y - 4)], SPINE, 4.0))
        marks.append(Text(x + 21, y, label, SMALL, INK))
        x += width + 14
    return y
