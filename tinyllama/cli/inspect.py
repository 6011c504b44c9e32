"""`tinyllama inspect`: what a model file says about itself, and its tensors. No weight is read."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from ..printable import printable
from .arguments import DEFAULT_MODEL

if TYPE_CHECKING:
    from tinyllama.formats import ModelFile

HELP = "show a model file's metadata and tensors, without reading its weights"

LICENCE_KEY = "general.license"
LONGEST_ARRAY = 8  # longer ones show their first three items
LONGEST_TEXT = 100  # characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    what = f"a name (smollm2), a path, or hf:OWNER/REPO/FILE.gguf (default: {DEFAULT_MODEL})"
    model.add_argument("model", nargs="?", metavar="MODEL", help=what)
    model.add_argument("-m", "--model", dest="model_flag", metavar="MODEL", help="the same")
    parser.add_argument("--json", action="store_true", help="as JSON, arrays in full; NaN and infinity become null")


def run(args: argparse.Namespace) -> int:
    from tinyllama.formats import open_model_file
    from tinyllama.models import find

    model_file = open_model_file(find(args.model or args.model_flag or DEFAULT_MODEL))
    if args.json:
        print(json.dumps(as_json(model_file), indent=1, allow_nan=False))
    else:
        print_tables(model_file)
    return 0


def as_json(model_file: ModelFile) -> dict[str, Any]:
    """The whole of it, in what JSON can hold."""
    return {
        "path": str(model_file.path),
        "format": model_file.format,
        "metadata": {key: plain(value) for key, value in model_file.metadata.items()},
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.format.name, "bytes": t.nbytes}
            for t in model_file.tensors.values()
        ],
        "n_tensors": len(model_file.tensors),
        "n_params": model_file.n_params,
        "bytes": model_file.nbytes,
    }


def plain(value: Any) -> Any:
    """A metadata value as JSON's own types."""
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_tables(model_file: ModelFile) -> None:
    tensors = model_file.tensors.values()
    print(printable(str(model_file.path)))
    print(f"format   {model_file.format}")
    print(f"licence  {shown(model_file.metadata.get(LICENCE_KEY, 'not stated in the file'))}")

    print(f"\nmetadata: {len(model_file.metadata)} pairs")
    print_columns([(printable(key), shown(value)) for key, value in model_file.metadata.items()], "<<")

    print("\ntensors: shape as numpy has it, [rows, columns]; GGUF and llama.cpp write it the other way round")
    rows = [(printable(t.name), t.format.name, str(list(t.shape)), f"{t.nbytes:,}") for t in tensors]
    print_columns([("name", "type", "shape", "bytes"), *rows], "<<<>")

    print(f"\ntotal: {len(tensors)} tensors, {model_file.n_params:,} parameters, {model_file.nbytes:,} bytes")


def print_columns(rows: list[tuple[str, ...]], alignment: str) -> None:
    """Rows of equal length, each column as wide as its widest cell; `alignment` has < or > for each column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, alignment, widths, strict=True))
        print("  " + "  ".join(cells).rstrip())


def shown(value: Any) -> str:
    """A metadata value in a line: long arrays and texts abbreviated."""
    if isinstance(value, str):
        cut = len(value) > LONGEST_TEXT
        return printable(value[:LONGEST_TEXT]) + (f"... [{len(value)} characters]" if cut else "")
    if isinstance(value, float):
        return f"{value:.6g}"  # as float32 is good for
    if hasattr(value, "__len__"):
        cut = len(value) > LONGEST_ARRAY
        few = value[: 3 if cut else None]
        items = ", ".join(f"'{shown(item)}'" if isinstance(item, str) else shown(item) for item in few)
        return f"[{len(value)} items: {items}, ...]" if cut else f"[{items}]"
    return str(value)
