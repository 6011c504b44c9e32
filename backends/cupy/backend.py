"""CUDA: the kernels of device/, cuBLAS for large products, and CuPy's own functions for an op without a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ops.graph import Graph
from ops.op import Op

from ..array_api import ArrayApi
from ..base import Buffer, Device, Options
from ..device import DeviceBackend
from ..device.array import DeviceArray
from .devices import INSTALL, chosen, found, limits
from .products import LARGE, Products


class Arrays(ArrayApi):
    """The ops in CuPy's functions, on CuPy's arrays."""

    name: ClassVar[str] = "cupy"
    namespace: ClassVar[str] = "cupy"
    packages: ClassVar[str] = INSTALL


class CuPy(DeviceBackend):
    name: ClassVar[str] = "cupy"

    def __init__(self, options: Options | None = None) -> None:
        options = options or Options()
        number = chosen(options.device)
        from .runtime import CudaRuntime  # here: it needs CuPy, of which `chosen` has told if it is missing

        self.runtime: CudaRuntime
        super().__init__(CudaRuntime(number, limits(number, options)), options)
        self._arrays = Arrays(options)
        self._products = Products(self.runtime) if self.runtime.has_cublas else None
        self.runtime.limits = replace(self.runtime.limits, library=self._products)

    @classmethod
    def devices(cls) -> list[Device]:
        return found()

    def describe(self) -> str:
        large = "cuBLAS" if self._products else "the same kernels, for want of cuBLAS"
        return f"{super().describe()}, products of {LARGE} tokens or more by {large}"

    def scratch_bytes(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        chunk = self._products.bytes_missing() if self._products and sizes.get("T", 1) >= LARGE else 0
        return super().scratch_bytes(graph, sizes) + chunk

    def kernel_of(self, op: Op) -> Callable[..., Buffer] | None:
        return super().kernel_of(op) or self._by_arrays(op)

    def _by_arrays(self, op: Op) -> Callable[..., Buffer] | None:
        """The op in CuPy's functions, on the memory where its operands are."""
        kernel = self._arrays.kernel_of(op)
        if kernel is None or any(operand.dtype == "weight" for operand in op.inputs):  # quantised ones are no arrays
            return None

        def run(*operands: DeviceArray, **attrs: Any) -> DeviceArray:
            return self.runtime.by_arrays(kernel, operands, attrs)

        return run
