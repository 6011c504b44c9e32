"""tinyllama beside llama.cpp, model by model:  python examples/bench_vs_llama_cpp.py -t 2 --backend opencl

Both read the same file in the same process, in turns, so that other programs on the machine disturb both alike; medians and
their ratio are printed. Without a model it takes SmolLM2 as it comes (Q4_1) and in three more types, made with our own
quantiser; --synthetic adds a LLaMA of 1.1 billion random weights, TinyLlama's sizes, in Q4_0 and Q4_K_M.

Needs llama-cpp-python; docs/speed.md says how it is built, and what was measured.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from bench_limits import LlamaCpp, seconds
from numpy.typing import NDArray
from tqdm import tqdm

from ops.blocks import FORMATS, quantize
from ops.errors import OptionError
from tinyllama import Model, cli
from tinyllama.build import build
from tinyllama.formats.gguf_writer import NewTensor, write_gguf
from tinyllama.models import find
from tinyllama.quantize import quantize as quantize_file
from tinyllama.repack import file_type_number
from tinyllama.shapes import shape_file
from tinyllama.tensor_types import tensor_types

# case -> tokens that the context holds before, tokens that are read in the time measured, how many of them at once
CASES = {"prefill 512": (0, 512, 512), "decode 128": (0, 128, 1), "decode 32 at 2000": (2000, 32, 1)}
TYPES = ("Q4_0", "Q8_0", "Q4_K_M")
ROWS = 256  # of random weights that are made at a time


class Ours:
    """The same calls as LlamaCpp's."""

    def __init__(self, path: Path, n_threads: int, backend: str, features: str | None = None) -> None:
        self.model = Model.load(path, backend=backend, n_threads=n_threads, n_ctx=2048, device_features=features)
        self.context = self.model.context()
        cli.warm_up(self.context)

    def read(self, tokens: list[int]) -> None:
        self.context.eval(tokens)

    def clear(self) -> None:
        self.context.rewind(0)


def turn(program: Any, case: str) -> float:
    """Tokens a second, once."""
    before, n, at_once = CASES[case]
    program.clear()
    for start in range(0, before, 500):
        program.read(list(range(start + 1, start + 501)))
    tokens = list(range(1, n + 1))

    def measured() -> None:
        for start in range(0, n, at_once):
            program.read(tokens[start : start + at_once])

    return n / seconds(measured)


def compare(path: Path, args: argparse.Namespace) -> None:
    """A line for each case."""
    theirs, ours = LlamaCpp(path, args.threads, n_ctx=2048), Ours(path, args.threads, args.backend, args.device_features)
    for case in CASES:
        speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for i in tqdm(range(args.repetitions + 1), desc=f"{path.stem}, {case}", leave=False, disable=None):
            for name, program in (("theirs", theirs), ("ours", ours)):
                speed = turn(program, case)
                if i:  # the first turn warms up
                    speeds[name].append(speed)
        a, b = (median(speeds[name]) for name in ("ours", "theirs"))
        print(f"{path.stem:<36} {case:<18} {a:>10.1f} {b:>10.1f} {a / b:>7.2f}", flush=True)


def smollm2(folder: Path, args: argparse.Namespace) -> Iterator[Path]:
    """As it comes, and quantised anew. The file loses twice by that, which is no matter for its speed."""
    source = find("smollm2")
    yield source
    for type in TYPES:
        out = folder / f"SmolLM2-135M.{type}.gguf"
        with cli.file_bar(f"writing {out.name}") as progress:
            quantize_file(source, out, type, allow_requantize=True, n_threads=args.threads, progress=progress)
        yield out


def synthetic(folder: Path) -> Iterator[Path]:
    """Weights drawn from a normal distribution, as wide as keeps a vector's length; quantised as a real model's would be."""
    for type in ("Q4_0", "Q4_K_M"):
        model = shape_file("tinyllama-1.1b", type)
        types = tensor_types(build(model).config, {name: t.shape for name, t in model.tensors.items()}, type)
        n_vocab = model.tensors["token_embd.weight"].shape[0]
        metadata = {
            **model.metadata,
            "general.file_type": file_type_number(type),
            "llama.rope.dimension_count": 64,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(3, n_vocab))],
            "tokenizer.ggml.scores": np.zeros(n_vocab, np.float32),
            "tokenizer.ggml.token_type": np.array([2, 3, 3] + [1] * (n_vocab - 3), np.int32),
        }
        tensors = [
            NewTensor(name, t.shape, FORMATS[types[name]], lambda shape=t.shape, type=types[name]: random_rows(shape, type))
            for name, t in model.tensors.items()
        ]
        out = folder / f"random-1.1B.{type}.gguf"
        with cli.file_bar(f"writing {out.name}") as progress:
            write_gguf(out, metadata, tensors, progress=progress)
        yield out


def random_rows(shape: tuple[int, ...], type: str) -> Iterator[NDArray[np.uint8]]:
    rng, n = np.random.default_rng(0), shape[-1]
    if len(shape) == 1:
        yield np.ones((1, n), np.float32).view(np.uint8)
        return
    for start in range(0, shape[0], ROWS):
        rows = rng.standard_normal((min(ROWS, shape[0] - start), n), np.float32) / np.float32(n) ** 0.5
        yield quantize(rows, FORMATS[type])


def bench(args: argparse.Namespace) -> int:
    if find_spec("llama_cpp") is None:
        raise OptionError("llama-cpp-python is not installed: docs/speed.md says how to build it")
    print(f"tokens/s, medians of {args.repetitions} turns, {args.threads} threads; ours with --backend {args.backend}")
    print(f"{'model':<36} {'':<18} {'tinyllama':>10} {'llama.cpp':>10} {'ratio':>7}")
    with TemporaryDirectory() as folder:
        for name in args.models:
            compare(find(name), args)
        if not args.models:
            for path in smollm2(Path(folder), args):
                compare(path, args)
        if args.synthetic:
            for path in synthetic(Path(folder)):
                compare(path, args)
                path.unlink()
    return 0


def main() -> int:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="files to compare with (default: SmolLM2 in four types)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--backend", default="opencl")
    parser.add_argument("--device-features", metavar="KIND", help="avx512vnni, avx2, portable: other kernels than the best")
    parser.add_argument("--synthetic", action="store_true", help="a model of 1.1 billion random weights, too")
    args = parser.parse_args()
    return cli.guarded(lambda: bench(args), parser.prog)


if __name__ == "__main__":
    sys.exit(main())
