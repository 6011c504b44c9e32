"""Where the time of a step goes: the ops of many steps summed up, beside what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

import ops
from backends.base import Backend, Event
from ops.tensor import Tensor


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

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.own_seconds = 0.0

    def __call__(self, event: Event) -> None:
        began = perf_counter()
        row = self.rows.setdefault(event.node.op.name + (" (on the host)" if event.on_host else ""), Row())
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
            f"{'op':<24} {'calls':>7} {'ms':>10} {'share':>7} {'GFLOP/s':>9} {'of peak':>8} {'GB/s':>7} {'of peak':>8}",
        ]
        for name, row in ops:
            seconds = row.seconds or 1e-9  # a clock of coarse ticks may show none
            gflops, gbps = row.flops / seconds, row.bytes / seconds
            lines.append(
                f"{name:<24} {row.calls:>7} {row.seconds * 1e3:>10.2f} {row.seconds / total:>7.1%} {gflops / 1e9:>9.2f} "
                f"{gflops / peak.flops:>8.1%} {gbps / 1e9:>7.2f} {gbps / peak.bytes:>8.1%}"
            )
        lines += [
            f"{'dispatch':<24} {'':>7} {dispatch * 1e3:>10.2f} {dispatch / total:>7.1%}",
            f"peak, measured: {peak.flops / 1e9:.0f} GFLOP/s (matrix product), {peak.bytes / 1e9:.1f} GB/s (read once)",
            "",
        ]
        return "\n".join(lines)


def measure_peak(backend: Backend) -> Peak:
    """Best of five each: a peak is what is possible, not what is usual. Measured on a backend of its own, then let go."""
    fresh = type(backend)(replace(backend.options, weights_memory=None))
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
