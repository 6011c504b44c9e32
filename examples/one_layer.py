"""One layer of a large model at its real shapes, with random Q4_0 weights:  python examples/one_layer.py falcon-180b

A file is written that holds one layer and the output matrix, and takes steps of one token on numpy or on a device. All layers
of a model are alike, so this tells what each of them would take, on a machine that the whole model does not fit. The file has
the embedding too, of which a step reads one row: the others are never written, and take no place on the disk.

Needs the `gguf` package, which writes the header: pip install gguf
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import gguf
import numpy as np
from tqdm import tqdm

from backends.base import Event, Observer
from ops.blocks import FORMATS
from ops.errors import OptionError
from tinyllama import Model, cli
from tinyllama.memory import mib, peak_resident
from tinyllama.shapes import SHAPES, shape_file

STEPS = 5  # the fastest counts; before them one that brings the weights into the form they are computed in
PLACES = 64  # of the context
PATTERN = 1 << 16  # random blocks, repeated
Q4_0 = FORMATS["Q4_0"]


def write(path: Path, name: str) -> None:
    """The model of that name with one layer: GGUF's header, then weights whose products keep the size of what they multiply."""
    model = shape_file(name, "Q4_0")
    arch = model.metadata["general.architecture"]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in {**model.metadata, f"{arch}.block_count": 1}.items():
        if key != "general.architecture":
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    shapes = {key: t.shape for key, t in model.tensors.items() if not key.startswith("blk.") or key.startswith("blk.0.")}
    for key, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor_info(key, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            rows = shape[0], Q4_0.row_bytes(shape[1])
            kind = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor_info(key, rows, np.dtype(np.uint8), rows[0] * rows[1], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()

    rng = np.random.default_rng(0)
    with path.open("r+b") as file:
        at = path.stat().st_size
        for key, shape in tqdm(shapes.items(), desc=f"writing {name}", unit="tensor"):
            at = file.seek(at + -at % gguf.GGUF_DEFAULT_ALIGNMENT)
            if len(shape) == 1:
                file.write(np.full(shape, key.endswith("weight"), np.float32).data)
                at = file.tell()
            else:
                at += shape[0] * Q4_0.row_bytes(shape[1])
                write_blocks(file, PLACES if key == "token_embd.weight" else shape[0], shape[1], rng)
        file.truncate(at + -at % gguf.GGUF_DEFAULT_ALIGNMENT)


def write_blocks(file: BinaryIO, n_rows: int, n: int, rng: np.random.Generator) -> None:
    """Rows of Q4_0. The quants of a block, -8 to 7, spread by 4.6 around nearly nothing; its scale makes that 1 / sqrt(n)."""
    blocks = rng.integers(0, 256, (PATTERN, Q4_0.block_bytes), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(1 / (4.6 * sqrt(n))), np.uint8)
    left = n_rows * Q4_0.row_bytes(n)
    while left:
        left -= file.write(blocks.data.cast("B")[:left])


def add_to(seconds: list[float]) -> Observer:
    """An observer that adds the time of each op of a layer to the last number."""

    def observe(event: Event) -> None:
        if event.node.layer is not None:
            seconds[-1] += event.seconds

    return observe


def measure(path: Path, name: str, backend: str, weights_memory: int | None) -> None:
    """Take steps, and print what they took."""
    began = perf_counter()
    model = Model.load(path, backend=backend, weights_memory=weights_memory, n_ctx=PLACES)
    context = model.context()
    cli.warm_up(context)
    context.eval([0])
    prepared = perf_counter() - began

    totals: list[float] = []
    layers: list[float] = []
    for token in tqdm(range(1, STEPS + 1), desc="steps of one token"):
        layers.append(0.0)
        began = perf_counter()
        context.eval([token], observe=add_to(layers))
        totals.append(perf_counter() - began)

    of_layer = sum(t.nbytes for key, t in model.tensors.items() if key.startswith("blk."))
    of_output = model.tensors["output.weight"].nbytes
    layer, total = min(layers), min(totals)
    n_layer = shape_file(name, "Q4_0").metadata[f"{model.config.arch}.block_count"]
    print(f"{name}: one layer of {n_layer}, {mib(of_layer)}, and the output, {mib(of_output)}, in Q4_0")
    print(f"backend     = {model.backend.describe()}")
    print(f"prepared in = {prepared:.2f} s")
    print(f"a step      = {total:.3f} s, {(of_layer + of_output) / total / 1e9:.2f} GB/s of the file")
    print(f"its layer   = {layer:.3f} s, {of_layer / layer / 1e9:.2f} GB/s: {n_layer} of them {n_layer * layer:.1f} s a token")
    print(f"peak memory = {mib(peak_resident() or 0)}")


def one_layer(args: argparse.Namespace) -> int:
    limit = None if args.weights_memory is None else int(args.weights_memory * 2**30)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True))
            path = Path(folder, f"{args.shape}.gguf")
            write(path, args.shape)
        except OSError as error:
            told = f"--folder {args.folder}: the file cannot be written there: {error.strerror or error}"
            raise OptionError(f"{told}; name a folder with room for it") from None
        measure(path, args.shape, args.backend, limit)
    return 0


if __name__ == "__main__":
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--backend", default="numpy", help="numpy, opencl, cupy ... (default: numpy)")
    parser.add_argument(
        "--weights-memory", type=float, metavar="GIB", help="GiB for numpy's weights in float32 (default: what is free)"
    )
    parser.add_argument("--folder", default=".", help="where the file is written meanwhile (default: here)")
    args = parser.parse_args()
    sys.exit(cli.guarded(lambda: one_layer(args), parser.prog))
