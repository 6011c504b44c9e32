"""A backend on a device that compiles C: all of it but the runtime, which OpenCL and CUDA bring each of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ops.errors import BackendError
from ops.graph import Graph
from ops.op import Op
from ops.tensor import MadeRows, Tensor

from ..base import Backend, Buffer, Options, Plan
from ..pages import let_go
from . import launches, products  # noqa: F401  (they fill the table)
from .array import DeviceArray, DeviceWeight, Part
from .launch import TABLE, Launch, covers
from .plan import DevicePlan, scratch_bytes
from .runtime import Runtime

Operand = DeviceArray | DeviceWeight


class DeviceBackend(Backend):
    kv_dtype: ClassVar[DTypeLike] = np.float16
    kv_grows: ClassVar[bool] = False  # a device that is too small should say so before the first token

    def __init__(self, runtime: Runtime, options: Options | None = None) -> None:
        super().__init__(options)
        self.runtime = runtime

    def describe(self) -> str:
        return f"{self.name} on {self.runtime.limits.name}, kernels for a {self.runtime.limits.kind.upper()}"

    # Where arrays live

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        array = self._empty(shape, np.dtype(dtype))
        self.runtime.clear(array.memory)
        return array

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
        return scratch_bytes(self.fused(graph), sizes)

    # Kernels

    def kernel_of(self, op: Op) -> Callable[..., Buffer] | None:
        own = super().kernel_of(op)
        return own or (partial(self._apply, op) if covers(op) else None)

    def launches(self, op: Op, operands: list[Operand], output: DeviceArray, attrs: Mapping[str, Any]) -> list[Launch]:
        """What computes a node; none for one that only sees memory with another shape."""
        return list(TABLE[op.name](self.runtime.limits, *operands, output, **attrs)) if op.name in TABLE else []

    def _apply(self, op: Op, *operands: Operand, **attrs: Any) -> DeviceArray:
        """One op by itself. A plan does the same for a whole graph beforehand."""
        shape = op.infer([x.shape for x in operands], attrs)
        named = dict(zip((o.name for o in op.inputs), operands, strict=True))
        if "S" in shape and "positions" in named:  # what is in sight: up to the last position
            last = int(self.download(cast("DeviceArray", named["positions"]))[-1])
            shape = tuple(last + 1 if d == "S" else d for d in shape)
        shape = cast("tuple[int, ...]", shape)
        viewed = cast("DeviceArray | None", named.get(op.view_of))
        output = viewed.seen_as(shape) if viewed else self._empty(shape, np.dtype(np.float32))
        self.runtime.prepare(self.launches(op, list(operands), output, attrs))()
        return output

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
