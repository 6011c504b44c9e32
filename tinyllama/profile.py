"""Where the time of a step goes: the ops of many steps summed up, each beside what the machine can do: a roofline, in numbers.

An op has to compute and to read, and the machine can do so much of either in a second. So there are two times that it takes at
least, and the longer one is its bound.                                              Williams, Waterman and Patterson 2009
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from backends.base import Backend, Event
from ops.op import Operand

from .model import Model
from .offload import label
from .peak import Peak
from .summary import coverage_told

FAR = 0.2  # of both peaks: an op that reaches less is bound by neither
LEGEND = (
    f"bound: memory or compute, whichever is nearer to its peak; neither: both are under {FAR:.0%}, so the time goes to\n"
    "starting, to waiting, or to work that is no product, such as exp()"
)


@dataclass(frozen=True)
class Kind:
    """What is summed up together."""

    backend: Backend
    op: str
    by: str  # "kernel", or "host" where the formula computes it
    arithmetic: str  # "int8" if x is rounded to 8 bits for all its weights, else "float"; "" where nothing is computed


@dataclass
class Row:
    """One kind's share: calls, seconds, operations and bytes in all."""

    calls: int = 0
    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0
    streamed: float = 0.0  # of the bytes those of weights and of the cache, which no step finds near the processor


class Profile:
    """An observer that sums up one phase, the reading of a prompt or the generation after it, by op."""

    def __init__(self, model: Model, peaks: Mapping[Backend, Peak]) -> None:
        """peaks: of each backend of the model's placement."""
        self.rows: dict[Kind, Row] = {}
        self._model, self._peaks = model, peaks
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
        op, cost = event.node.op, event.cost
        streamed = {id(buffer) for operand, buffer in zip(op.inputs, event.operands, strict=True) if _is_streamed(operand)}
        by = "host" if event.on_host else "kernel"
        arithmetic = self._arithmetic(event) if cost.flops else ""
        row = self.rows.setdefault(Kind(event.backend, op.name, by, arithmetic), Row())
        row.calls += 1
        row.seconds += event.seconds
        row.operations += cost.flops
        row.bytes += cost.bytes
        row.streamed += op.cost(
            event.operands, event.outputs, lambda x: event.backend.nbytes(x) if id(x) in streamed else 0
        ).bytes

    def _arithmetic(self, event: Event) -> str:
        weights = [self._model.leaves[v.name] for v in event.node.inputs if v.dtype == "weight"]
        rounded = all(event.backend.rounding(event.node.op, weight) for weight in weights)
        return "int8" if weights and rounded and not event.on_host else "float"

    def table(self, title: str, phase: str, n_tokens: int, seconds: float) -> str:
        """By op, the longest first. phase: "prefill" or "decode", of n_tokens in so many seconds while nobody observed.

        `dispatch` is what the ops leave of these seconds: Python and the driver between them.
        """
        dispatch = max(0.0, seconds - sum(row.seconds for row in self.rows.values()))
        total = dispatch + sum(row.seconds for row in self.rows.values()) or 1e-9
        several = len(self._peaks) > 1
        width = max(len(label(backend)) for backend in self._peaks) + 1 if several else 0
        lines = [
            f"{title} ({phase}): {seconds:.3f} s, {n_tokens / seconds:.1f} tokens/s",
            f"{'op':<16} {'on' if several else '':<{width}}{'by':<6} {'in':<5} {'calls':>6} {'ms':>9} {'share':>6} "
            f"{'GOP/s':>7} {'of peak':>8} {'GB/s':>6} {'of peak':>8} bound",
        ]
        for kind, row in sorted(self.rows.items(), key=lambda item: -item[1].seconds):
            compute, memory = self._of_peaks(kind, row)
            each = row.seconds or 1e-9  # a clock of coarse ticks may show none
            lines.append(
                f"{kind.op:<16} {label(kind.backend) if several else '':<{width}}{kind.by:<6} {kind.arithmetic:<5} "
                f"{row.calls:>6} {row.seconds * 1e3:>9.2f} {row.seconds / total:>6.1%} {row.operations / each / 1e9:>7.2f} "
                f"{compute:>8.1%} {row.bytes / each / 1e9:>6.2f} {memory:>8.1%} {bound(compute, memory)}".rstrip()
            )
        lines.append(f"{'dispatch':<29} {'':>{width}}{'':>6} {dispatch * 1e3:>9.2f} {dispatch / total:>6.1%}")
        lines += [LEGEND, self._in_all(phase, n_tokens, seconds), f"ops: {coverage_told(self._model.coverage())}"]
        if self._launches:
            python = self._launch_seconds / self._launches
            lines.append(f"Python overhead per launched kernel: {python * 1e6:.1f} us ({self._launches} launched)")
        return "\n".join([*lines, *self._peaks_told(), ""])

    def _of_peaks(self, kind: Kind, row: Row) -> tuple[float, float]:
        """Parts of its peaks, of arithmetic and of reading, that a row reaches."""
        peak, seconds = self._peaks[kind.backend], row.seconds or 1e-9
        return row.operations / seconds / peak.operations(kind.arithmetic), row.bytes / seconds / peak.bytes

    def _in_all(self, phase: str, n_tokens: int, seconds: float) -> str:
        """A prompt beside the peak of arithmetic, for its tokens share each weight; generation beside that of reading.

        Where backends or kinds of arithmetic differ, each amount counts with its own peak.
        """
        if phase == "prefill":
            amount = sum(row.operations for row in self.rows.values())
            at_best = sum(row.operations / self._peaks[k.backend].operations(k.arithmetic) for k, row in self.rows.items())
            each, unit = f"{amount / n_tokens / 1e9:.2f} GOP", "GOP/s"
        else:
            amount = sum(row.streamed for row in self.rows.values())
            at_best = sum(row.streamed / self._peaks[k.backend].bytes for k, row in self.rows.items())
            each, unit = f"{amount / n_tokens / 1e6:.1f} MB", "GB/s"
        return (
            f"{phase}: {each} a token at {n_tokens / seconds:.0f} tokens/s = {amount / seconds / 1e9:.1f} {unit}, "
            f"{at_best / seconds:.0%} of the {amount / at_best / 1e9:.1f} {unit} measured"
        )

    def _peaks_told(self) -> Iterator[str]:
        for backend, peak in self._peaks.items():
            where = f" on {label(backend)}" if len(self._peaks) > 1 else ""
            integers = f"{peak.integers / 1e9:.0f} GOP/s in int8, " if peak.integers else ""
            floats, read = f"{peak.floats / 1e9:.0f} GOP/s in float", f"{peak.bytes / 1e9:.1f} GB/s read once"
            yield f"peaks, measured{where}: {integers}{floats}, {read}"


def bound(compute: float, memory: float) -> str:
    """What holds an op back that reaches these parts of its peaks."""
    if max(compute, memory) < FAR:
        return "neither" if compute or memory else ""  # a view does nothing
    return "compute" if compute > memory else "memory"


def _is_streamed(operand: Operand) -> bool:
    """Is it a weight, or the part of a cache that is in sight?"""
    return operand.dtype == "weight" or operand.dims[0] == "S"
