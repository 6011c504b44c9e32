"""`tinyllama pull`: fetch a model, and print where it lies."""

from __future__ import annotations

import argparse
import sys

from tinyllama.models import MODELS, find

HELP = "fetch a model and print its file's path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=f"a name ({', '.join(MODELS)}), hf:OWNER/REPO/FILE.gguf, or a path")


def run(args: argparse.Namespace) -> int:
    """The path alone goes to stdout, so that `model=$(tinyllama pull smollm2)` works; the licence goes to stderr."""
    from tinyllama.formats import open_model_file

    path = find(args.model)
    licence = open_model_file(path).metadata.get("general.license", "not stated in the file")
    print(f"licence: {licence}", file=sys.stderr)
    print(path)
    return 0
