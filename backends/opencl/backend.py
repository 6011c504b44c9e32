"""OpenCL: on PoCL any CPU is a device; GPUs and others through their vendors' drivers."""

from __future__ import annotations

from typing import ClassVar

from ..base import Device, Options
from ..device import DeviceBackend
from .devices import chosen, found, keep_threads_apart, limits, told, with_threads

# Bytes that PoCL and a model's kernels, read from its cache, were measured to take. To compile them first takes 110 MB more
KERNELS = 24 << 20


class OpenCL(DeviceBackend):
    name: ClassVar[str] = "opencl"

    def __init__(self, options: Options | None = None) -> None:
        options = options or Options()
        keep_threads_apart(options.n_threads)
        device = with_threads(chosen(options.device), options.n_threads)
        from .runtime import OpenCLRuntime  # here: it needs pyopencl, of which `chosen` has told if it is missing

        self.runtime: OpenCLRuntime
        super().__init__(OpenCLRuntime(device, limits(device, options)), options)

    def beside_buffers(self) -> int | None:
        return KERNELS if self.runtime.shares_memory else None

    @classmethod
    def devices(cls) -> list[Device]:
        return [told(device) for device in found()]
