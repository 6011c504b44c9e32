"""`tinyllama graph`: a model's graph as a table or a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_kernel_arguments, add_model_name
from .text import option_error

if TYPE_CHECKING:
    from ..model import Model

HELP = "print a model's graph of ops as a table, or draw it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model_name(parser)
    add("--layer", default=None, metavar="N", help="a layer's number, or all (default: all as a table, 0 as a picture)")
    add("-o", "--output", type=Path, default=None, metavar="FILE", help="draw a picture: .svg, or .png (with Pillow)")
    add("--fused", action="store_true", help="the graph as the backend runs it, with its fused ops")
    add("--backend", default="auto", metavar="NAME", help="whose fused ops (default: auto, the one that `run` takes)")
    add_kernel_arguments(add)


def run(args: argparse.Namespace) -> int:
    from backends.base import Options
    from backends.registry import get_backend
    from ops.graph import table

    from ..drawing import draw
    from ..model import Model

    model = Model.load(args.model, backend="numpy")  # nothing is computed: a device may be too small for the model
    graph = model.graph
    if args.fused:
        graph = get_backend(args.backend, Options(precise=args.precise, repack=args.repack)).fused(graph)
    layer = _layer(args.layer or ("0" if args.output else "all"), model.config.n_layer)
    if args.output is None:
        for line in table(n for n in graph.nodes if layer is None or n.layer == layer):
            print(line)
        return 0
    formats = {name: tensor.format.name for name, tensor in model.leaves.items()}
    title, subtitle = _title(model, args.model, layer), _sizes(model)
    draw(graph, args.output, layer=layer, title=title, subtitle=subtitle, formats=formats)
    return 0


def _layer(text: str, n_layer: int) -> int | None:
    """None for all. OptionError: neither a layer of the model nor "all"."""
    if text == "all":
        return None
    if text not in map(str, range(n_layer)):
        raise option_error(f"--layer {text}: the model has layers 0 to {n_layer - 1}; give one of these, or all")
    return int(text)


def _title(model: Model, given: str, layer: int | None) -> str:
    part = f"its {model.config.n_layer} layers" if layer is None else f"layer {layer} of {model.config.n_layer}"
    return f"{model.config.name or Path(given).name} · {part}"


def _sizes(model: Model) -> str:
    cfg = model.config
    names = ("n_embd", "n_head", "n_head_kv", "n_ff", "n_vocab")
    return " · ".join([cfg.arch, *(f"{name} {getattr(cfg, name)}" for name in names)])
