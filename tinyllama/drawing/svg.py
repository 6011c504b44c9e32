"""A scene as SVG text: opens in any browser, scales without loss, and tells an op's formula where the pointer rests."""

from __future__ import annotations

from itertools import pairwise
from xml.sax.saxutils import escape

from .scene import BACKGROUND, Curve, Mark, Rect, Scene, Text


def svg(scene: Scene) -> bytes:
    """UTF-8 bytes of a standalone SVG file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{scene.width}" height="{scene.height}" '
        f'viewBox="0 0 {scene.width} {scene.height}" font-family="Helvetica, Arial, sans-serif">'
    )
    back = f'<rect width="100%" height="100%" fill="{BACKGROUND}"/>'
    marks = map(_element, scene.marks)
    return "\n".join([head, f"<title>{escape(scene.title)}</title>", back, *marks, "</svg>\n"]).encode()


def _element(mark: Mark) -> str:
    match mark:
        case Rect():
            tip = f"<title>{escape(mark.tip)}</title>" if mark.tip else ""
            return (
                f'<rect x="{mark.x:g}" y="{mark.y:g}" width="{mark.width:g}" height="{mark.height:g}" '
                f'rx="{mark.radius:g}" fill="{mark.fill}" stroke="{mark.stroke}" stroke-width="1.4">{tip}</rect>'
            )
        case Text():
            return (
                f'<text x="{mark.x:g}" y="{mark.y:g}" font-size="{mark.size:g}" fill="{mark.colour}" '
                f'text-anchor="{mark.anchor}" pointer-events="none">{escape(mark.text)}</text>'
            )
        case Curve():
            start = "M{:g} {:g}".format(*mark.points[0])
            steps = " ".join(_step(a, b) for a, b in pairwise(mark.points))
            return f'<path d="{start} {steps}" fill="none" stroke="{mark.colour}" stroke-width="{mark.width:g}"/>'
        case _:
            corners = " ".join(f"{x:g},{y:g}" for x, y in mark.points)
            return f'<polygon points="{corners}" fill="{mark.colour}"/>'


def _step(a: tuple[float, float], b: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = a, b
    if x == to_x or y == to_y:
        return f"L{to_x:g} {to_y:g}"
    middle = (y + to_y) / 2  # leaves and arrives upright
    return f"C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y:g}"
