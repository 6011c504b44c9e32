"""A scene as PNG bytes, painted with Pillow at twice the scene's size."""

from __future__ import annotations

import io
from itertools import pairwise

from ops.errors import OptionError

from .layout import Point
from .scene import BACKGROUND, Curve, Rect, Scene, Text

SCALE = 2  # pixels of the file for one of the scene: sharp on today's screens
FINER = 2  # shapes are painted larger still and shrunk, which smooths their edges; type is smooth by itself
ANCHORS = {"start": "ls", "end": "rs"}  # Pillow's words for left and right on the baseline


def png(scene: Scene) -> bytes:
    """OptionError where Pillow is missing or too old to bring a font that scales (before 10.1)."""
    try:
        from PIL import Image, ImageDraw, ImageFont

        fonts = {m.size: ImageFont.load_default(m.size * SCALE) for m in scene.marks if isinstance(m, Text)}
    except (ImportError, TypeError) as error:
        raise OptionError('a .png picture needs Pillow: pip install "tinyllama[docs]", or choose .svg') from error

    zoom = SCALE * FINER
    image = Image.new("RGB", (scene.width * zoom, scene.height * zoom), BACKGROUND)
    brush = ImageDraw.Draw(image)
    for mark in scene.marks:
        if isinstance(mark, Rect):
            corners = [v * zoom for v in (mark.x, mark.y, mark.x + mark.width, mark.y + mark.height)]
            brush.rounded_rectangle(corners, mark.radius * zoom, mark.fill, mark.stroke, round(1.4 * zoom))
        elif isinstance(mark, Curve):
            line = [(x * zoom, y * zoom) for x, y in _polyline(mark)]
            brush.line(line, mark.colour, round(mark.width * zoom), joint="curve")
        elif not isinstance(mark, Text):
            brush.polygon([(x * zoom, y * zoom) for x, y in mark.points], mark.colour)

    image = image.reduce(FINER)
    brush = ImageDraw.Draw(image)
    for mark in scene.marks:
        if isinstance(mark, Text):
            at = (mark.x * SCALE, mark.y * SCALE)
            brush.text(at, mark.text, mark.colour, fonts[mark.size], ANCHORS[mark.anchor])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _polyline(curve: Curve, steps: int = 24) -> list[Point]:
    """The curve of svg.py in short straight pieces: a cubic whose inner control points lie at half the height."""
    line = [curve.points[0]]
    for (x, y), (to_x, to_y) in pairwise(curve.points):
        if x == to_x or y == to_y:
            line.append((to_x, to_y))
            continue
        for t in (i / steps for i in range(1, steps + 1)):
            across = t * t * (3 - 2 * t)  # (1-t)^3 x + 3(1-t)^2 t x + 3(1-t) t^2 to_x + t^3 to_x
            down = 1.5 * t * (1 - t) + t**3  # the same with y, the middle twice, to_y; from 0 to 1
            line.append((x + (to_x - x) * across, y + (to_y - y) * down))
    return line
