"""OpenCL on Oclgrind, a simulated device: the runtime, with what it takes to be told the truth about memory.

Oclgrind keeps for each byte whether it was ever written. Some of what a host does to memory it does not take into account
(version 21.10): a buffer that was filled counts as never written; one that the host wrote a part of counts as that part and no
more; a new buffer takes over what was known about a freed one. It is exact about what kernels do. So here kernels fill and
copy, and no buffer is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from ..device.launch import Launch
from ..device.runtime import Limits, Memory
from ..opencl.runtime import OpenCLRuntime

_SOURCE = """
kernel void copy(global uchar* target, global const uchar* source) { target[get_global_id(0)] = source[get_global_id(0)]; }
kernel void clear(global uchar* target) { target[get_global_id(0)] = 0; }
"""


class SimulatedRuntime(OpenCLRuntime):
    def __init__(self, device: cl.Device, limits: Limits) -> None:
        super().__init__(device, limits)
        self.kernels: set[tuple[str, str]] = set()  # that were launched: file and name
        self._kept: list[cl.Buffer] = []
        program = cl.Program(self._context, _SOURCE).build()
        self._copy_bytes, self._clear_bytes = program.copy, program.clear

    def _allocate(self, nbytes: int) -> cl.Buffer:
        self._kept.append(super()._allocate(nbytes))
        return self._kept[-1]

    def _zeros(self, nbytes: int) -> cl.Buffer:
        self._kept.append(super()._zeros(nbytes))
        return self._kept[-1]

    def _upload(self, data: NDArray[np.uint8]) -> cl.Buffer:
        self._kept.append(super()._upload(data))
        return self._kept[-1]

    def write(self, memory: Memory, array: NDArray[Any]) -> None:
        if array.nbytes:
            self._copy(memory.handle, self._upload(array.reshape(-1).view(np.uint8)), array.nbytes)

    def copy(self, target: Memory, source: Memory, nbytes: int) -> None:
        if nbytes:
            self._copy(target.handle, source.handle, nbytes)

    def clear(self, memory: Memory) -> None:
        if memory.nbytes:
            self._clear_bytes(self._queue, (memory.nbytes,), (1,), memory.handle)

    def _copy(self, target: cl.Buffer, source: cl.Buffer, nbytes: int) -> None:
        with self._told():
            self._copy_bytes(self._queue, (nbytes,), (1,), target, source)
        self.finish()

    def prepare(self, launches: Sequence[Launch]) -> Callable[[], None]:
        self.kernels |= {(launch.source, launch.kernel) for launch in launches}
        return super().prepare(launches)
