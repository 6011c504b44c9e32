"""`tinyllama pull`: fetch a model, and print where it lies."""

from __future__ import annotations

import argparse

from ..printable import printable
from .arguments import note

HELP = "fetch a model and print its file's path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name such as smollm2, hf:OWNER/REPO/FILE.gguf, or a path")


def run(args: argparse.Namespace) -> int:
    """The path alone goes to stdout, so that `model=$(tinyllama pull smollm2)` works; the licence goes to stderr."""
    from ..formats import open_model_file
    from ..models import find

    path = find(args.model)
    licence = open_model_file(path).metadata.get("general.license", "not stated in the file")
    note(f"licence: {printable(str(licence))}")
    print(path)
    return 0
