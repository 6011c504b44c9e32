"""What a backend tells those who watch: how it computes a graph, each op that has run, how far long work has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ops.fusion import fuse
from ops.graph import Graph, Node
from ops.op import OPS, Cost

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
        nodes = backend.fused(graph).nodes
        all_fused = fuse(graph, [op for op in OPS.values() if op.fused]).nodes if backend.options.fuse else []
        return cls(
            kernel=Counter(n.op.name for n in nodes if backend.kernel_of(n.op)),
            decomposed=Counter(n.op.name for n in all_fused if n.op.fused and not backend.kernel_of(n.op)),
            on_host=Counter(n.op.name for n in nodes if not backend.kernel_of(n.op)),
        )

    def __add__(self, other: Coverage) -> Coverage:
        return Coverage(self.kernel + other.kernel, self.decomposed + other.decomposed, self.on_host + other.on_host)


@dataclass(frozen=True)
class Event:
    """One op has run: what an observer of a step is told. The buffers are its to look at until it returns."""

    node: Node
    operands: list[Buffer]
    output: Buffer
    seconds: float
    backend: Backend
    on_host: bool  # True: computed by its formula on the host, for want of a kernel

    @property
    def cost(self) -> Cost:
        """What it took at least: floating-point operations, bytes moved."""
        return self.node.op.cost(self.operands, self.output, self.backend.nbytes)


Observer = Callable[[Event], None]


class Progress(Protocol):
    """Wraps a list that takes long to work through, as tqdm does: progress(weights, "preparing weights")."""

    def __call__(self, items: list[Any], told: str) -> Iterable[Any]: ...
