"""Where the time of a step goes: the ops of many steps summed up, beside what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

import ops
from backends.base import Backend, Event
from ops.tensor import Tensor

from .model import Model
from .summary import coverage_told


@dataclass
class Row:
    """One op's share: calls, seconds, floating-point operations and bytes in all."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Peak:
    """What a machine can do at best with float32, measured by the backend's own matrix product."""

    flops: float  # a second: x[512, 2048] @ w[2048, 2048]
    bytes: float  # a second: x[1, 4096] @ w[8192, 4096], 128 MB read


class Profile:
    """An observer that sums up by op, and keeps count of the time it takes itself."""

    def __init__(self, model: Model) -> None:
        self.rows: dict[tuple[str, str], Row] = {}  # by op and by how it was computed: kernel or host
        self.own_seconds = 0.0
        self._model = model
        self._launches, self._launch_seconds = 0, 0.0

    @contextmanager
    def counting_launches(self) -> Iterator[None]:
        """What runs inside, unobserved, is asked how many kernels it launches, and what Python needs for that."""
        before = [backend.launched() for backend in self._model.placement.backends]
        yield
        after = [backend.launched() for backend in self._model.placement.backends]
        self._launches += sum(n for n, _ in after) - sum(n for n, _ in before)
        self._launch_seconds += sum(s for _, s in after) - sum(s for _, s in before)

    def __call__(self, event: Event) -> None:
        began = perf_counter()
        row = self.rows.setdefault((event.node.op.name, "host" if event.on_host else "kernel"), Row())
        cost = event.cost
        row.calls += 1
        row.seconds += event.seconds
        row.flops += cost.flops
        row.bytes += cost.bytes
        self.own_seconds += perf_counter() - began

    def table(self, title: str, wall_seconds: float, peak: Peak) -> str:
        """By op, the longest first. `dispatch` is what remains of the wall clock: Python between the ops."""
        total = wall_seconds - self.own_seconds
        ops = sorted(self.rows.items(), key=lambda item: -item[1].seconds)
        dispatch = max(0.0, total - sum(row.seconds for row in self.rows.values()))
        lines = [
            title,
            f"{'op':<17} {'by':<6} {'calls':>7} {'ms':>10} {'share':>7} "
            f"{'GFLOP/s':>9} {'of peak':>8} {'GB/s':>7} {'of peak':>8}",
        ]
        for (name, by), row in ops:
            seconds = row.seconds or 1e-9  # a clock of coarse ticks may show none
            gflops, gbps = row.flops / seconds, row.bytes / seconds
            lines.append(
                f"{name:<17} {by:<6} {row.calls:>7} {row.seconds * 1e3:>10.2f} {row.seconds / total:>7.1%} "
                f"{gflops / 1e9:>9.2f} {gflops / peak.flops:>8.1%} {gbps / 1e9:>7.2f} {gbps / peak.bytes:>8.1%}"
            )
        lines += [
            f"{'dispatch':<24} {'':>7} {dispatch * 1e3:>10.2f} {dispatch / total:>7.1%}",
            f"ops: {coverage_told(self._model.coverage())}",
        ]
        if self._launches:
            each = self._launch_seconds / self._launches
            lines.append(f"Python overhead per launched kernel: {each * 1e6:.1f} us ({self._launches} launched)")
        lines += [
            f"peak, measured: {peak.flops / 1e9:.0f} GFLOP/s (matrix product), {peak.bytes / 1e9:.1f} GB/s (read once)",
            "",
        ]
        return "\n".join(lines)


def measure_peak(backend: Backend) -> Peak:
    """Best of five each: a peak is what is possible, not what is usual. Measured on a backend of its own, then let go."""
    fresh = type(backend)(replace(backend.options, weights_memory=None, device_memory=None))
    multiply = fresh.kernel_of(ops.matmul) or fresh.on_host(ops.matmul)

    def best(T: int, m: int, n: int) -> float:
        rng = np.random.default_rng(0)
        stored = rng.standard_normal((m, n), dtype=np.float32)
        weight = fresh.weight(Tensor("peak", (m, n), ops.FORMATS["F32"], stored.view(np.uint8)))
        x = fresh.upload(rng.standard_normal((T, n), dtype=np.float32))
        times = []
        for _ in range(6):
            began = perf_counter()
            multiply(x, weight)
            fresh.synchronize()
            times.append(perf_counter() - began)
        return min(times[1:])

    return Peak(flops=2 * 512 * 2048 * 2048 / best(512, 2048, 2048), bytes=4 * 8192 * 4096 / best(1, 8192, 4096))
