"""Pictures of a model's graph, as .svg or .png.

draw(model.graph, Path("layer.svg"), layer=0, title="SmolLM2 135M")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ops.errors import OptionError
from ops.graph import Graph

from .diagram import diagram
from .png import png
from .scene import compose
from .svg import svg

__all__ = ["draw"]

WRITERS = {".svg": svg, ".png": png}


def draw(
    graph: Graph,
    path: Path,
    *,
    layer: int | None = 0,
    title: str = "",
    subtitle: str = "",
    formats: Mapping[str, str] | None = None,
) -> None:
    """Write a picture of one layer, or with None of the whole model, its layers folded up.

    `formats`: how a weight is stored ("Q4_1"), by its name in the graph. The file appears whole or not at all.
    OptionError: a suffix other than .svg and .png, a layer the graph has not, a folder that cannot be written.
    """
    if path.suffix.lower() not in WRITERS:
        raise OptionError(f"{path}: a picture's name must end in .svg or .png")
    picture = WRITERS[path.suffix.lower()](compose(diagram(graph, layer, formats or {}), title, subtitle))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            unfinished.write_bytes(picture)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)  # fails like the writing where the path itself is impossible
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror}; choose another place for the picture") from error
