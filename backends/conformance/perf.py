"""How fast each op is at the sizes of a real model, beside numpy in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ops.op import OPS, Op
from ops.tensor import Tensor

from ..base import Backend
from ..numpy import Numpy
from .case import Case
from .select import is_meant
from .strategies import dtypes
from .support import DECOMPOSED, how

# TinyLlama 1.1B's layer: 2048 wide, 32 query heads that share 4 key heads of 64, with 512 tokens in sight
SIZES = {"n": 2048, "m": 2048, "a": 2048, "b": 256, "c": 256, "V": 4096, "h": 32, "k": 4, "d": 64, "e": 64, "r": 32, "U": 1}
SEEN = 512
TOKENS = (1, 64)  # decode, and a part of a prompt
ATTRS: dict[str, Any] = {"eps": 1e-5, "scale": 0.125, "neox": False, "h": 32}
SECONDS, CALLS = 0.1, 50  # of one measurement, at most


@dataclass(frozen=True)
class Speed:
    """Medians. None for numpy where it has no kernel of its own either."""

    op: str
    dtype: str
    shape: str
    microseconds: float
    gflops: float  # GFLOP/s
    gbytes: float  # GB/s, of what has to be moved at least
    numpy_microseconds: float
    numpy_gflops: float
    numpy_gbytes: float

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def row(self) -> list[str]:
        ours, numpys = (
            (self.microseconds, self.gflops, self.gbytes),
            (self.numpy_microseconds, self.numpy_gflops, self.numpy_gbytes),
        )
        return [self.op, self.dtype, self.shape, *(f"{x:.3g}" if x < 1000 else f"{x:.0f}" for x in (*ours, *numpys))]


HEADINGS = ["op", "dtype", "shape", "us", "GFLOP/s", "GB/s", "numpy us", "GFLOP/s", "GB/s"]


def speeds(backend: Backend, expression: str | None = None) -> Iterator[Speed]:
    """Every op but views, with each dtype; `expression` chooses as -k does. A fused op without a kernel never runs."""
    numpys = Numpy(backend.options)
    for op in OPS.values():
        if how(backend, op) == DECOMPOSED:
            continue
        for dtype in dtypes(op):
            if expression is not None and not is_meant(f"op-{op.name}-{dtype}", expression):
                continue
            for n_tokens in TOKENS:
                case = _case(op, dtype, n_tokens)
                ours = _measure(backend, op, case)
                if ours[2] > 0:  # a view moves nothing
                    shape = " ".join(f"{k}={v}" for k, v in case.sizes.items())
                    yield Speed(op.name, dtype, shape, *ours, *_measure(numpys, op, case))


def _case(op: Op, dtype: str, n_tokens: int) -> Case:
    sizes = {**SIZES, "T": n_tokens, "S": SEEN, "C": SEEN}
    letters = sorted({d for o in op.inputs for d in o.dims})
    return Case(
        op.name,
        {letter: sizes.get(letter, 64) for letter in letters},
        {name: ATTRS.get(name, 1) for name in op.attrs},
        start=SEEN - n_tokens,
        format=dtype if dtype not in ("f32", "f16") else "F32",
        kv="float16" if dtype == "f16" else "float32",
    )


def _measure(backend: Backend, op: Op, case: Case) -> tuple[float, float, float]:
    """Microseconds, GFLOP/s, GB/s of one call, the first ones not counted: they may convert weights and compile kernels."""
    run: Callable[..., Any] = backend.kernel_of(op) or backend.on_host(op)
    on_host = backend.kernel_of(op) is None
    buffers = []
    for operand, x in zip(op.inputs, case.operands(), strict=True):
        if isinstance(x, Tensor):
            buffers.append(x if on_host else backend.resident(x, operand.dtype))
        elif operand.dtype == "float" and operand.dims[0] in ("S", "C"):
            buffer = backend.allocate(x.shape, x.dtype)
            backend.overwrite(buffer, np.zeros_like(x) if operand.written else x)
            buffers.append(buffer)
        else:
            buffers.append(backend.upload(x))

    def call() -> float:
        began = perf_counter()
        run(*buffers, **case.attrs)
        backend.synchronize()
        return perf_counter() - began

    outputs = op.results(run(*buffers, **case.attrs))
    cost = op.cost(buffers, outputs, backend.nbytes)
    first = call()
    seconds = median([first, *(call() for _ in range(min(CALLS, int(SECONDS / max(first, 1e-6)))))])
    return 1e6 * seconds, cost.flops / seconds / 1e9, cost.bytes / seconds / 1e9
