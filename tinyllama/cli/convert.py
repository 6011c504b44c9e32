"""`tinyllama convert`: a model of any format as a GGUF file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..printable import printable
from .arguments import note
from .progress import file_bar

HELP = "write a model of any format that is read here as a GGUF file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="IN", help="a model file or folder: GGUF, ggjt, Hugging Face, Meta, llama2.c")
    parser.add_argument("out", metavar="OUT.gguf", type=Path, help="the file to write")
    parser.add_argument("--outtype", choices=("f32", "f16", "bf16", "q8_0"), default=None,
                        help="type of the matrices (default: as they are stored)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite OUT.gguf")


def run(args: argparse.Namespace) -> int:
    from ..convert import convert
    from ..models import find

    with file_bar("converting") as progress:
        made = convert(find(args.model), args.out, args.outtype, force=args.force, progress=progress)
    if made.rounded:
        note(
            f"the scales of {len(made.rounded)} tensors were rounded from float32 to float16, which GGUF's blocks have, "
            f"by at most {max(made.rounded.values()):.3%}; --outtype f32 keeps every weight exactly"
        )
    print(f"{printable(str(args.out))}: {made.n_tensors} tensors, {made.nbytes:,} bytes")
    return 0
