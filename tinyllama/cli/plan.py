"""`tinyllama plan`: what a run will take of memory, before it runs."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from .arguments import add_batch_size, add_kernel_arguments, integer, layer_count, memory_size
from .text import option_error

if TYPE_CHECKING:
    from ..formats import ModelFile

HELP = "what a run will take of memory, before it runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL_OR_SHAPE", help="a model, or a shape by name: llama-7b, llama-13b, llama-30b, llama-65b, "
        "llama2-7b, llama2-13b, llama2-70b, tinyllama-1.1b, falcon-7b, falcon-40b, falcon-180b")  # fmt: skip
    add("type", metavar="TYPE", nargs="?", default=None,
        help="what the weights are quantised to, such as q4_0 or Q4_K_M (default: a model's own, a shape's Q4_0)")  # fmt: skip
    add("-c", "--ctx-size", type=integer(0), default=0, metavar="N", help="places of the context; 0: the model's own (default)")
    add_batch_size(parser)
    add("-ngl", "--n-gpu-layers", "--gpu-layers", type=layer_count, default=None, metavar="N",
        help="the last N layers on the device; default: as many as --device-memory holds, none without it")  # fmt: skip
    add("--device-memory", type=memory_size, default=None, metavar="SIZE", help="memory of the device, such as 12G")
    add("--backend", default=None, metavar="NAME",
        help="ask the device of this backend, or of the one that auto finds (default: none is asked, as a plan may be for any "
        "machine)")  # fmt: skip
    add_kernel_arguments(add)
    add("-t", "--threads", type=integer(1, 1024), default=None, metavar="N", help="numpy's threads (default: all cores)")
    add("--weights-memory", type=memory_size, default=None, metavar="SIZE",
        help="memory for numpy's weights in float32, such as 6G; the rest stays mapped (default: what is free)")  # fmt: skip
    for letter, what in (("k", "keys"), ("v", "values")):
        add(f"-ct{letter}", f"--cache-type-{letter}", choices=("f16", "f32"), default=None,
            help=f"how the KV cache keeps {what} (default: f32 on numpy, f16 on a device)")  # fmt: skip
    add("--file-format", choices=("gguf", "ggjt2"), default=None,
        help="blocks of today (default), or of May 2023, whose scales took 4 bytes")  # fmt: skip
    add("--json", action="store_true", help="the plan for a program; amounts in bytes")


def run(args: argparse.Namespace) -> int:
    from backends.base import Options
    from backends.registry import AUTO, fastest, get_backend

    from ..plan_report import as_dict, report
    from ..planning import plan

    options = Options(device_memory=args.device_memory, precise=args.precise, repack=args.repack)
    device = get_backend(args.backend, options) if args.backend else None
    if device is not None and device.memory_free() is None:
        why = f" ({fastest(options).passed_over})" if args.backend == AUTO else ""
        raise option_error(f"--backend {args.backend} has no device whose memory could be planned{why}: leave it away")
    settings = {
        "n_ctx": args.ctx_size,
        "n_batch": args.batch_size,
        "n_gpu_layers": {"all": -1, "auto": None}.get(args.n_gpu_layers, args.n_gpu_layers),
        "device": device,
        "device_memory": args.device_memory,
        "type_k": args.cache_type_k,
        "type_v": args.cache_type_v,
        "n_threads": args.threads,
        "weights_memory": args.weights_memory,
    }
    file, today = _files(args.model, args.type, args.file_format)
    planned = plan(file, **settings)
    host = planned.on_host()
    if args.json:
        print(json.dumps(as_dict(planned, host), indent=2))
    else:
        print(report(planned, host, plan(today, **settings) if today is not None else None))
    return 0


def _files(model: str, type: str | None, file_format: str | None) -> tuple[ModelFile, ModelFile | None]:
    """The model to plan for; and if that is one of 2023, the same in today's blocks."""
    from ..formats import open_model_file
    from ..models import find
    from ..shapes import SHAPES, requantized, shape_file

    if (shape := model.lower()) in SHAPES:
        type = type or "Q4_0"
        today = shape_file(shape, type) if file_format == "ggjt2" else None
        return shape_file(shape, type, file_format or "gguf"), today
    file = open_model_file(find(model))
    if type is None and file_format is None:
        return file, None
    return requantized(file, type, file_format or "gguf"), None
