"""The contract: what a backend is.

A backend says where arrays live (allocate, upload, download, overwrite), and how ops are computed (methods marked with
`@kernel`). Everything else has a default. The smallest backend that works is a class with nothing in it: the base class
computes every op by its formula, in numpy, on the host.

    class Mine(Backend):
        name = "mine"

        @kernel(ops.silu)
        def silu(self, x):                    # the op's own operands and attributes, as this backend's buffers
            return my_library.silu(x)

How an op is computed is found in this order:
1. its own kernel;
2. for a fused op, the ops it is made of: fusion only ever puts in the fused ops that have a kernel;
3. the op's formula on the host: operands downloaded, results uploaded.
`coverage` counts what became of a graph; it is in the load summary, never silent.

A graph is prepared once, by `compile`, and run often. The default plan is a loop over kernels; a device overrides `compile`
to bind its arguments once, to plan its buffers by lifetime, or to capture the launches.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ops.fusion import fuse
from ops.graph import Graph
from ops.op import OPS, Op
from ops.tensor import Tensor

from .observing import Coverage, Event, Observer, Progress

__all__ = [
    "Backend", "Buffer", "Coverage", "Device", "Event", "Observer", "Options", "Plan", "Progress", "kernel", "usable_cpus",
]  # fmt: skip

Buffer = Any  # an array where the backend computes; numpy's on the host
Method = TypeVar("Method", bound=Callable[..., Any])


def kernel(op: Op) -> Callable[[Method], Method]:
    """Mark a method as the kernel of an op: same operands, same attributes; of several outputs it returns a tuple."""

    def mark(method: Method) -> Method:
        method.op = op  # type: ignore[attr-defined]
        return method

    return mark


@dataclass(frozen=True)
class Options:
    """What a user may ask of a backend; each takes what concerns it."""

    n_threads: int | None = None  # None: as many as this process may use
    weights_memory: int | None = None  # bytes for weights kept in another form than the file's; None: what is free
    fuse: bool = True  # False: run the primitive ops one by one, so that a trace shows every value
    device: str | None = None  # which of the backend's devices: its number in `devices()`, or a part of its name
    device_memory: int | None = None  # bytes that the device may use at most; None: all it has
    device_features: str | None = None  # run the kernels made for another kind of device than the one found
    precise: bool = False  # True: activations stay in float32 where the backend would round them to 8 bits
    repack: bool = True  # False: weights stay as they are mapped where the backend would lay them out anew
    panels_folder: Path | None = None  # where weights laid out anew are kept for the next start; None: nowhere
    tuning_file: Path | None = None  # where it is kept what a device was found to be fastest with; None: it is not measured


@dataclass(frozen=True)
class Device:
    """What a backend could compute on."""

    name: str
    kind: str  # "CPU", "GPU" or "accelerator"
    memory: int  # bytes it has
    driver: str


def usable_cpus() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Plan(Protocol):
    """A graph prepared for a backend."""

    def warm_up(self, progress: Progress) -> None:
        """Do now what the first step would do once: read and convert weights, compile kernels."""

    def rebind(self, name: str, buffer: Buffer) -> None:
        """From now on the leaf of this name is another buffer: a cache that has grown."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None) -> list[Buffer]:
        """One step: arrays for the leaves that were not bound; returns the graph's outputs, which the next step may overwrite.

        ShapeError: an input is missing, or its shape does not fit the graph's.
        """


class Backend:
    """Buffers are plain numpy arrays here; a device overrides the first group of methods together.

    A buffer of another kind needs `shape` and `nbytes`, which traces and profiles read. Contexts in several threads share a
    backend, so kernels keep nothing between calls that another thread could change. A constructor that finds no device
    raises BackendError with a sentence that says what to install.
    """

    name: ClassVar[str] = "reference"
    kv_dtype: ClassVar[DTypeLike] = np.float32  # of a KV cache, if the user does not say
    kv_dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16")  # what it may be
    kv_grows: ClassVar[bool] = True  # a cache starts small and is enlarged; False: it takes all its memory at once
    _kernels: ClassVar[dict[str, str]] = {}  # op -> the method that computes it

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self._resident: dict[str, WeakKeyDictionary[Tensor, Buffer]] = defaultdict(WeakKeyDictionary)  # by form
        self._resident_lock = RLock()  # no shorter name, which a subclass might have for a lock of its own

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        marked = ((name, getattr(getattr(cls, name, None), "op", None)) for name in dir(cls))
        cls._kernels = {**cls._kernels, **{op.name: name for name, op in marked if op is not None}}

    def kernel_of(self, op: Op) -> Callable[..., Buffer] | None:
        """This backend's own kernel of an op, if it has one."""
        method = self._kernels.get(op.name)
        return None if method is None else getattr(self, method)

    @property
    def n_threads(self) -> int:
        return self.options.n_threads or usable_cpus()

    # Where arrays live

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """A buffer of zeros, for a cache: float32, or float16 if the user wants a cache of half the size."""
        return np.zeros(shape, dtype)

    def upload(self, array: NDArray[Any]) -> Buffer:
        """The array, of floats or integers and in any layout, as a buffer; a copy, if kernels may still read it afterwards."""
        return array

    def download(self, buffer: Buffer) -> NDArray[Any]:
        """The buffer as a numpy array, possibly the same memory."""
        host: NDArray[Any] = buffer
        return host

    def overwrite(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """buffer[:len(array)] = array"""
        if array is not buffer:
            buffer[: len(array)] = array

    def weight(self, tensor: Tensor) -> Buffer:
        """A weight as the kernels of matmul and embedding take it: quantised still, if they can multiply it so."""
        return tensor

    # What may stay as it is

    def form(self, tensor: Tensor, dtype: str, op: Op) -> str:
        """How this op's kernel takes a constant leaf of this dtype: "weight" or "float", or a form of the backend's own.

        Ops that take the same weight in different forms each get theirs.
        """
        return dtype

    def bring(self, tensor: Tensor, form: str) -> Buffer:
        """A constant leaf in one of these forms: a "weight" as `weight` makes it, a "float" in float32."""
        return self.weight(tensor) if form == "weight" else self.upload(tensor.dequantize())

    def rounding(self, op: Op, tensor: Tensor) -> int:
        """Does this op round x to 8 bits before it multiplies it with this weight? Then so many numbers of a row together.

        x = d * q, with d = (the largest of them) / 127. 0: x stays as it is, as always with `Options.precise`.
        """
        return 0

    def resident(self, tensor: Tensor, form: str) -> Buffer:
        """What `bring` makes, once for all contexts."""
        with self._resident_lock:
            known = self._resident[form]
            if (buffer := known.get(tensor)) is None:
                buffer = self.bring(tensor, form)
                if buffer is not tensor:  # which would keep itself alive
                    known[tensor] = buffer
            return buffer

    def nbytes(self, buffer: Buffer) -> int:
        """Bytes that a kernel reads to see all of a buffer."""
        return int(buffer.nbytes)

    def enlarge(self, buffer: Buffer, rows: int) -> Buffer:
        """A buffer with more rows, the old ones kept, the new ones zero."""
        old = self.download(buffer)
        new = self.allocate((rows, *old.shape[1:]), old.dtype)
        self.overwrite(new, old)
        return new

    def warm_up(self, weights: Iterable[Tensor]) -> None:
        """Do now what the first step would do with these weights: read them, convert them."""

    def synchronize(self) -> None:
        """Wait until all that was launched has finished."""

    def launched(self) -> tuple[int, float]:
        """Kernels launched so far, and the seconds that this took on the host; (0, 0.0) where nothing is launched."""
        return 0, 0.0

    def describe(self) -> str:
        """One line for the load summary: what this backend runs on."""
        return "numpy, formula by formula"

    # Memory: what placement needs to know of a device. The host's is not counted

    @classmethod
    def devices(cls) -> list[Device]:
        """What this backend could run on; BackendError says what to install if that is why there is nothing."""
        return []

    def is_same_device(self, other: Backend) -> bool:
        """Do both take their memory from the same device? Then a model uses one of them only."""
        return self is other

    def memory_free(self) -> int | None:
        """Bytes that may still be taken, within `Options.device_memory`; None: this backend computes in the host's memory."""
        return None

    def memory_used(self) -> int:
        """Bytes of all buffers that are alive, as the runtime counts them."""
        return 0

    def beside_buffers(self) -> int | None:
        """Of a device that computes in the host's own memory, as PoCL does: bytes that its kernels take there beside buffers.

        None: its memory is another.
        """
        return None

    def resident_bytes(self, tensor: Tensor, form: str) -> int:
        """What `resident` takes, told beforehand."""
        return tensor.nbytes if form == "weight" else 4 * tensor.n_params

    def scratch_bytes(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        """What a plan takes beside its leaves for a step of these sizes: T tokens, U rows out, C places of a cache."""
        return 0

    # Running a graph

    def compile(self, graph: Graph, leaves: Mapping[str, Tensor | Buffer], sizes: Mapping[str, int] | None = None) -> Plan:
        """Prepare a graph. `leaves` are bound for good: weights and constants as Tensors, caches as buffers.

        sizes: of the largest step to expect, as in `scratch_bytes`; a plan may take its memory for it now.
        """
        from .plan import LoopPlan  # here: a plan is made of what this file defines

        return LoopPlan(self, graph, leaves)

    def fused(self, graph: Graph) -> Graph:
        """The graph as this backend runs it: with every fused op that it has a kernel for."""
        has = [op for op in OPS.values() if op.fused and self.kernel_of(op)]
        return fuse(graph, has) if self.options.fuse else graph

    def coverage(self, graph: Graph) -> Coverage:
        """How this backend computes a graph."""
        return Coverage.of(self, graph)

    def on_host(self, op: Op) -> Callable[..., Buffer]:
        """The op's formula as a kernel: operands downloaded, what it wrote written back, results uploaded."""

        def run(*operands: Buffer, **attrs: Any) -> Buffer:
            arrays: list[Any] = [x if isinstance(x, Tensor) else self.download(x) for x in operands]
            result = op.formula(*arrays, **attrs)
            for operand, buffer, array in zip(op.inputs, operands, arrays, strict=True):
                if operand.written:
                    self.overwrite(buffer, array)
            return op.returned([self.upload(x) for x in op.results(result)])

        return run
