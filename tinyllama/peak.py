"""What a backend reaches at best on this machine: its own matrix product, large for arithmetic, of one token for reading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

import ops
from backends.base import Backend, Event
from ops.blocks import quantize
from ops.graph import Graph
from ops.tensor import Tensor

# A peak is what is possible, not what is usual: the best of so many tries counts, and of more while these seconds last, since
# another program may be in the way for a while
TRIES = 10
SECONDS = 0.5


@dataclass(frozen=True)
class Peak:
    """The two limits of a roofline (Williams, Waterman and Patterson 2009), the first for each kind of arithmetic."""

    floats: float  # operations a second: x[512, 2048] @ w[2048, 2048].T in F32
    integers: float | None  # of 8 bits: x[512, 2048] @ w[4096, 2048].T in Q4_0; None: the backend does not multiply them
    bytes: float  # read a second: the better of 134 MB in F32 and of 143 MB in Q8_0, times one token

    def operations(self, arithmetic: str) -> float:
        """Of this kind, "int8" or "float"."""
        return self.integers if arithmetic == "int8" and self.integers else self.floats


def measure_peak(backend: Backend) -> Peak:
    """Measured on a backend of its own, then let go; by the times that an observer of its steps is told."""
    fresh = type(backend)(replace(backend.options, weights_memory=None, device_memory=None))
    floats, _ = _best(fresh, 512, _weight(fresh, "F32", 2048, 2048))
    _, read = _best(fresh, 1, _weight(fresh, "F32", 8192, 4096))
    rounded = _weight(fresh, "Q4_0", 4096, 2048)
    if not fresh.rounding(ops.matmul, rounded):
        return Peak(floats, None, read)
    integers, _ = _best(fresh, 512, rounded)
    _, read_rounded = _best(fresh, 1, _weight(fresh, "Q8_0", 32768, 4096))
    return Peak(floats, integers, max(read, read_rounded))


def _best(backend: Backend, n_tokens: int, weight: Tensor) -> tuple[float, float]:
    """Operations and bytes a second of x @ weight.T, of its fastest run."""
    graph = Graph()
    x = graph.leaf("x", ("T", weight.shape[1]))
    graph.outputs = [ops.matmul(x, graph.leaf("weight", weight.shape, "weight"))]
    plan = backend.compile(graph, {"weight": weight}, {"T": n_tokens, "U": 1, "C": 1})
    events: list[tuple[float, float]] = []

    def observe(event: Event) -> None:
        seconds = max(event.seconds, 1e-9)  # a clock of coarse ticks may show none
        events.append((event.cost.flops / seconds, event.cost.bytes / seconds))

    numbers = np.random.default_rng(0).standard_normal((n_tokens, weight.shape[1]), np.float32)
    until = perf_counter() + SECONDS
    while len(events) < TRIES or perf_counter() < until:
        plan({"x": numbers}, observe)
    return max(events)


def _weight(backend: Backend, format: str, m: int, n: int) -> Tensor:
    """Random numbers of usual size: denormal ones, as random bytes hold, would take a processor a hundred times as long."""
    rows = quantize(np.random.default_rng(0).standard_normal((16, n), np.float32), format)
    free = backend.memory_free()
    copies = m // 16 if free is None else min(m // 16, max(1, free // 2 // rows.nbytes))  # fewer rows on a small device
    return Tensor(format, (16 * copies, n), ops.FORMATS[format], np.tile(rows, (copies, 1)))
