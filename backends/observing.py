"""What a backend tells those who watch: how it computes a graph, each op that has run, how far long work has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ops.fusion import fuse
from ops.graph import Graph, Node
from ops.op import OPS, Cost, Op

if TYPE_CHECKING:
    from .base import Backend, Buffer


@dataclass(frozen=True)
class Coverage:
    """How the nodes of a graph are computed: for each kind, op -> number of nodes."""

    kernel: Counter[str] = field(default_factory=Counter)  # by the backend's own kernel
    decomposed: Counter[str] = field(default_factory=Counter)  # fused ops that run as the ops they are made of
    on_host: Counter[str] = field(default_factory=Counter)  # by the formula

    @classmethod
    def of(cls, backend: Backend, graph: Graph) -> Coverage:
        fused = backend.fused(graph)
        lacking = [op for op in OPS.values() if _joins_activations(op) and not backend.kernel_of(op)]
        all_fused = fuse(fused, lacking).nodes if backend.options.fuse else []
        nodes = fused.nodes
        return cls(
            kernel=Counter(n.op.name for n in nodes if backend.kernel_of(n.op)),
            decomposed=Counter(n.op.name for n in all_fused if n.op in lacking),
            on_host=Counter(n.op.name for n in nodes if not backend.kernel_of(n.op)),
        )

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(self.kernel + other.kernel, self.decomposed + other.decomposed, self.on_host + other.on_host)


def _joins_activations(op: Op) -> bool:
    """Is it a fused op that one misses without a kernel? Those around a weight or a cache save launches, if there are any."""
    return op.fused and not any(operand.dtype == "weight" or operand.written for operand in op.inputs)


@dataclass(frozen=True)
class Event:
    """One op has run: what an observer of a step is told. The buffers are its to look at until it returns."""

    node: Node
    operands: list[Buffer]
    outputs: list[Buffer]
    seconds: float
    backend: Backend
    on_host: bool  # True: computed by its formula on the host, for want of a kernel

    @property
    def output(self) -> Buffer:
        """The first of them, and nearly always the only one."""
        return self.outputs[0]

    @property
    def cost(self) -> Cost:
        """What it took at least: floating-point operations, bytes moved."""
        return self.node.op.cost(self.operands, self.outputs, self.backend.nbytes)


Observer = Callable[[Event], None]


class Progress(Protocol):
    """Wraps a list that takes long to work through, as tqdm does: progress(weights, "preparing weights")."""

    def __call__(self, items: list[Any], told: str) -> Iterable[Any]: ...
