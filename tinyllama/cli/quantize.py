"""`tinyllama quantize`: a model with its matrices quantised, as a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

from ..printable import printable
from .arguments import integer
from .progress import file_bar

HELP = "write a model with its matrices quantised, as a GGUF file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="IN.gguf", help="the model to quantise, in F32, F16 or BF16")
    add("out", metavar="OUT.gguf", type=Path, help="the file to write")
    add("type", metavar="TYPE", help="Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K_M, Q5_K_M, Q6_K, F16, BF16 or F32, in either case")
    add("-t", "--threads", type=integer(1, 1024), default=None, metavar="N", help="threads (default: all cores)")
    add("--force", action="store_true", help="overwrite OUT.gguf")
    add("--allow-requantize", action="store_true", help="quantise what is quantised already, and lose precision twice")
    add("-v", "--verbose", action="store_true", help="a line for each tensor")


def run(args: argparse.Namespace) -> int:
    from ..models import find
    from ..quantize import quantize

    began = perf_counter()
    with file_bar("quantising") as progress:
        made = quantize(
            find(args.model),
            args.out,
            args.type,
            allow_requantize=args.allow_requantize,
            n_threads=args.threads,
            force=args.force,
            progress=progress,
        )
    if args.verbose:
        for r in made.tensors:
            types = f"{r.tensor.format} -> {r.format}" if r.format is not r.tensor.format else f"{r.format}"
            print(f"{printable(r.tensor.name):32}  {list(r.tensor.shape)!s:16}  {types:16}  {r.nbytes:,} bytes")
    for told, nbytes in (("before", made.nbytes_before), ("after", made.nbytes)):
        print(f"{told:6}  {nbytes / 2**20:10.2f} MiB  {8 * nbytes / made.n_params:6.2f} bits a weight")
    print(f"{printable(str(args.out))}: written in {perf_counter() - began:.1f} s")
    return 0
