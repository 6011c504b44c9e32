"""A backend on a device that compiles C: all of it but the runtime, which OpenCL and CUDA bring each of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from threading import Lock
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ops.errors import BackendError
from ops.graph import Graph
from ops.op import Op
from ops.tensor import MadeRows, Tensor

from ..base import Backend, Buffer, Options, Plan, Progress
from ..pages import let_go
from . import attention, launches, products, top_k, tuning  # noqa: F401  (they fill the table)
from .arena import Arena
from .array import DeviceArray, DeviceWeight, PanelWeight, Part
from .launch import ROOMS, TABLE, Launch, covers
from .panel_store import PanelStore
from .panels import LAYOUTS, ROWS, Bytes, Layout, layout_of, pack_tensor, packed_bytes, panel_bytes
from .plan import DevicePlan
from .runtime import Memory, Runtime, Tuning
from .scratch import scratch_bytes

Operand = DeviceArray | DeviceWeight | PanelWeight
PANELS = "panels"  # the form of a weight that is multiplied by integers
TOLD = {"avx512vnni": "AVX-512 VNNI", "avx2": "AVX2", "portable": "portable C"}


class DeviceBackend(Backend):
    kv_dtype: ClassVar[DTypeLike] = np.float16
    kv_grows: ClassVar[bool] = False  # a device that is too small should say so before the first token

    def __init__(self, runtime: Runtime, options: Options | None = None) -> None:
        super().__init__(options)
        self.runtime = runtime
        self._kept = PanelStore(self.options.panels_folder)
        self._arena = Arena()
        self._tuning_lock = Lock()
        self.tuned: Tuning | None = None  # what the device was found to be fastest with, now or earlier
        if file := self.options.tuning_file:
            self._use(tuning.kept(file, runtime.limits))

    def describe(self) -> str:
        limits = self.runtime.limits
        how = f", quantised weights as 8-bit integers by {TOLD[limits.integers]}" if limits.integers else ""
        return f"{self.name} on {limits.name}, kernels for a {limits.kind.upper()}{how}"

    # What it is fastest with

    def tune(self, progress: Progress, *, anew: bool = False) -> list[tuning.Answer]:
        """Measure the sizes with which products are fast, keep them for this device, and use them from now on.

        What was measured; nothing if it is known, or has no place to be kept, unless it is wanted anew. A device that has no
        memory left for it is not tuned. Plans go on with what they have bound.
        """
        file = self.options.tuning_file
        with self._tuning_lock:
            if not anew and (file is None or self.tuned):
                return []
            try:
                answers = tuning.measure(self, progress)
            except BackendError:
                if anew:
                    raise
                return []
            if answers:
                self._use(tuning.of(answers))
                if file and self.tuned:
                    tuning.keep(file, self.runtime.limits, self.tuned)
            return answers

    def _use(self, tuned: Tuning | None) -> None:
        self.tuned = tuned
        if tuned:
            self.runtime.limits = replace(self.runtime.limits, tuning=tuned)

    # Where arrays live

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        kind = np.dtype(dtype)
        return DeviceArray(self.runtime.zeros(prod(shape) * kind.itemsize), tuple(shape), kind)

    def upload(self, array: NDArray[Any]) -> DeviceArray:
        kept = np.ascontiguousarray(array, _stored(array.dtype)).reshape(array.shape)  # a scalar stays one
        made = self._empty(kept.shape, kept.dtype)
        self.runtime.write(made.memory, kept)
        return made

    def download(self, buffer: DeviceArray) -> NDArray[Any]:
        array = np.empty(buffer.shape, buffer.dtype)
        self.runtime.read(buffer.memory, array)
        return array

    def overwrite(self, buffer: DeviceArray, array: NDArray[Any]) -> None:
        self.runtime.write(buffer.memory, np.ascontiguousarray(array, buffer.dtype))

    def enlarge(self, buffer: DeviceArray, rows: int) -> DeviceArray:
        larger = self.allocate((rows, *buffer.shape[1:]), buffer.dtype)
        self.runtime.copy(larger.memory, buffer.memory, buffer.nbytes)
        return larger

    def form(self, tensor: Tensor, dtype: str, op: Op) -> str:
        """Panels for products, where integers are multiplied; a table of which rows are read stays in its blocks."""
        panels = self.runtime.limits.integers and op in products.MULTIPLIED and layout_of(tensor)
        return PANELS if panels else dtype

    def rounding(self, op: Op, tensor: Tensor) -> int:
        return LAYOUTS[tensor.format.name].columns if self.form(tensor, "weight", op) == PANELS else 0

    def bring(self, tensor: Tensor, form: str) -> Buffer:
        return self.panels(tensor) if form == PANELS else super().bring(tensor, form)

    def resident_bytes(self, tensor: Tensor, form: str) -> int:
        return packed_bytes(tensor) if form == PANELS else super().resident_bytes(tensor, form)

    def panels(self, tensor: Tensor) -> PanelWeight:
        """The tensor repacked. Its parts have the same rows in any format, so that those of a gated unit belong together."""
        layout, (m, n) = layout_of(tensor), tensor.shape
        assert layout is not None
        largest = max(panel_bytes(other, n) for other in LAYOUTS.values() if n % other.columns == 0)
        most = self.runtime.limits.allocation // largest
        if not most:
            raise BackendError(
                f"{ROWS} rows of {tensor.name} take {largest} bytes, but the largest buffer of {self.runtime.limits.name} has "
                f"{self.runtime.limits.allocation}: keep weights as they are (--no-repack)"
            )
        parts = []
        for first in range(0, -(-m // ROWS), most):
            data = self._packed(tensor, layout, first, min(most, -(-m // ROWS) - first))
            parts.append(Part(first * ROWS, min(m - first * ROWS, len(data) * ROWS), self.runtime.upload(data)))
        return PanelWeight(layout, tensor.shape, tuple(parts))

    def _packed(self, tensor: Tensor, layout: Layout, first: int, n_panels: int) -> Bytes:
        """Panels as they are kept on disk, or made now: `keep_panels` keeps these."""
        if (kept := self._kept.find(tensor, first, n_panels)) is not None:
            return kept
        data = self._arena.take((n_panels, panel_bytes(layout, tensor.shape[1])))
        pack_tensor(tensor, data, self.n_threads, first)
        self._kept.add(tensor, first, data)
        return data

    def keep_panels(self) -> None:
        """Write what was repacked to disk: once, when all of a model is there."""
        self._kept.write()

    def weight(self, tensor: Tensor) -> DeviceWeight:
        """The tensor's blocks as they are, in as many buffers as the device's largest allocation makes necessary."""
        n_rows, row_bytes = tensor.data.shape
        most = max(self.runtime.limits.allocation // max(row_bytes, 1), 1)
        if row_bytes > self.runtime.limits.allocation:
            raise BackendError(
                f"a row of {tensor.name} takes {row_bytes} bytes, but the largest buffer of {self.runtime.limits.name} "
                f"has {self.runtime.limits.allocation}: keep its layer on another backend (-ngl, --layers)"
            )
        starts = range(0, n_rows, most)
        parts = [Part(start, len(rows := tensor.data[start : start + most]), self.runtime.upload(rows)) for start in starts]
        if isinstance(tensor.data, MadeRows) or self.beside_buffers() is None:
            let_go(tensor.data)  # the device has a copy
        return DeviceWeight(tensor.format, tensor.shape, tuple(parts))

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        return DeviceArray(self.runtime.allocate(prod(shape) * dtype.itemsize), tuple(shape), dtype)

    def synchronize(self) -> None:
        self.runtime.finish()

    def launched(self) -> tuple[int, float]:
        return self.runtime.launched, self.runtime.launch_seconds

    # Memory

    def is_same_device(self, other: Backend) -> bool:
        return type(self) is type(other) and self.runtime.device_key == other.runtime.device_key

    def memory_free(self) -> int | None:
        return max(0, self.runtime.limits.memory - self.runtime.used())

    def memory_used(self) -> int:
        return self.runtime.used()

    def scratch_bytes(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        return scratch_bytes(self.runtime.limits, self.fused(graph), sizes)

    # Kernels

    def kernel_of(self, op: Op) -> Callable[..., Buffer] | None:
        own = super().kernel_of(op)
        return own or (partial(self._apply, op) if covers(op) else None)

    def launches(
        self,
        op: Op,
        operands: Sequence[Operand],
        outputs: Sequence[DeviceArray],
        attrs: Mapping[str, Any],
        rooms: Sequence[Memory] = (),
    ) -> list[Launch]:
        """What computes a node; none for one that only sees memory with another shape."""
        if op.name not in TABLE:
            return []
        given = {"rooms": rooms} if op.name in ROOMS else {}
        return list(TABLE[op.name](self.runtime.limits, *operands, *outputs, **attrs, **given))

    def _apply(self, op: Op, *operands: Operand, **attrs: Any) -> DeviceArray | tuple[DeviceArray, ...]:
        """One op by itself. A plan does the same for a whole graph beforehand."""
        named = dict(zip((o.name for o in op.inputs), operands, strict=True))
        outputs = []
        for output, shape in zip(op.outputs, op.infer([x.shape for x in operands], attrs), strict=True):
            if "S" in shape and "positions" in named:  # what is in sight: up to the last position
                last = int(self.download(cast("DeviceArray", named["positions"]))[-1])
                shape = tuple(last + 1 if d == "S" else d for d in shape)
            shape = cast("tuple[int, ...]", shape)
            viewed = cast("DeviceArray | None", named.get(op.views.get(output.name, "")))
            dtype = np.dtype(np.int32 if output.dtype == "int" else np.float32)
            outputs.append(viewed.seen_as(shape) if viewed else self._empty(shape, dtype))
        shapes = [x.shape for x in (*operands, *outputs)]
        sizes = ROOMS[op.name](self.runtime.limits, *shapes, **attrs) if op.name in ROOMS else []
        rooms = [self.runtime.allocate(n) for n in sizes]
        self.runtime.prepare(self.launches(op, operands, outputs, attrs, rooms))()
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def compile(self, graph: Graph, leaves: Mapping[str, Tensor | Buffer], sizes: Mapping[str, int] | None = None) -> Plan:
        fused = self.fused(graph)
        if all(covers(n.op) for n in fused.nodes):
            return DevicePlan(self, fused, leaves, sizes or {})
        return super().compile(graph, leaves, sizes)  # with the host's help, one by one


def _stored(dtype: np.dtype[Any]) -> DTypeLike:
    """The type in which kernels take an array."""
    if dtype.kind in "iub":
        return np.int32
    return np.float16 if dtype == np.float16 else np.float32
