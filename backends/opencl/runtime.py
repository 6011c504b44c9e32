"""OpenCL as pyopencl gives it: one context, one queue, programs by their source."""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any, cast
from weakref import finalize

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from ops.errors import BackendError

from ..device.launch import Launch
from ..device.runtime import Limits, Memory, Runtime, argument, first_line
from ..device.sources import source

# a * b + c may be one instruction, nothing else may be rounded differently; no warnings, whose number PoCL writes to stderr
OPTIONS = ["-cl-mad-enable", "-cl-std=CL1.2", "-w"]
LOST = {cl.status_code.DEVICE_NOT_AVAILABLE, cl.status_code.INVALID_COMMAND_QUEUE, cl.status_code.INVALID_CONTEXT}
FULL = {cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE, cl.status_code.OUT_OF_RESOURCES, cl.status_code.OUT_OF_HOST_MEMORY}


class OpenCLRuntime(Runtime):
    def __init__(self, device: cl.Device, limits: Limits, context: cl.Context | None = None) -> None:
        super().__init__()
        self.limits = limits
        self._context = context or cl.Context([device])
        self.device_key = device
        # a decode step on PoCL was measured to take the same time with profiling and without
        self._queue = cl.CommandQueue(self._context, device, cl.command_queue_properties.PROFILING_ENABLE)
        finalize(self, _wait_for, self._queue)  # and when Python ends: memory must not go before the kernels that use it
        self.shares_memory = bool(device.host_unified_memory and device.type & cl.device_type.CPU)
        self._programs: dict[tuple[Any, ...], cl.Program] = {}
        self._ran: set[tuple[Any, ...]] = set()
        self._spare: dict[tuple[Any, ...], deque[cl.Kernel]] = defaultdict(deque)  # not bound to anything now

    # Memory

    def _allocate(self, nbytes: int) -> cl.Buffer:
        self._check_size(nbytes)
        with self._told(nbytes):
            return cl.Buffer(self._context, cl.mem_flags.READ_WRITE, nbytes)

    def zeros(self, nbytes: int) -> Memory:
        """Where the memory is the host's, the system's own zeros: a cache takes none before it is written."""
        if not self.shares_memory:
            return super().zeros(nbytes)
        return self._made(nbytes, lambda: self._zeros(max(nbytes, 1)))

    def _zeros(self, nbytes: int) -> cl.Buffer:
        self._check_size(nbytes)
        how = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
        with self._told(nbytes):
            return cl.Buffer(self._context, how, hostbuf=np.zeros(nbytes, np.uint8))

    def _upload(self, data: NDArray[np.uint8]) -> cl.Buffer:
        how = cl.mem_flags.USE_HOST_PTR if self.shares_memory else cl.mem_flags.COPY_HOST_PTR
        with self._told(data.nbytes):
            return cl.Buffer(self._context, cl.mem_flags.READ_ONLY | how, hostbuf=data)

    def _check_size(self, nbytes: int) -> None:
        if nbytes > self.limits.allocation:
            raise BackendError(
                f"a buffer of {nbytes / 2**20:.1f} MiB is more than {self.limits.name} gives at once "
                f"({self.limits.allocation / 2**20:.1f} MiB): use a shorter context (-c) or smaller batches (-b)"
            )

    def _finish(self) -> None:
        with self._told():
            self._queue.finish()

    # Copies

    def write(self, memory: Memory, array: NDArray[Any]) -> None:
        if array.nbytes:
            with self._told():
                cl.enqueue_copy(self._queue, memory.handle, array, is_blocking=True)

    def read(self, memory: Memory, array: NDArray[Any]) -> None:
        if array.nbytes:
            with self._told():
                cl.enqueue_copy(self._queue, array, memory.handle, is_blocking=True)

    def copy(self, target: Memory, source: Memory, nbytes: int) -> None:
        if nbytes:
            with self._told():
                cl.enqueue_copy(self._queue, target.handle, source.handle, byte_count=nbytes)
            self.finish()

    def clear(self, memory: Memory) -> None:
        if memory.nbytes:
            with self._told():
                cl.enqueue_fill_buffer(self._queue, memory.handle, np.uint8(0), 0, memory.nbytes)

    # Kernels

    def prepare(self, launches: Sequence[Launch]) -> Callable[[], None]:
        return Bound(self, [(launch, self._kernel(launch)) for launch in launches])

    def timed(self, run: Callable[[], None]) -> float:
        events = cast("Bound", run).launch()
        self.finish()
        with self._told():
            return float(sum(event.profile.end - event.profile.start for event in events)) / 1e9

    def is_compiled(self, launch: Launch) -> bool:
        return (launch.program, launch.kernel, launch.group_size) in self._ran

    def _kernel(self, launch: Launch) -> cl.Kernel:
        """A kernel object of our own, since arguments belong to it; an unused one if there is one."""
        self.check(launch)
        try:
            return self._spare[launch.program, launch.kernel].popleft()
        except IndexError:
            return cl.Kernel(self._program(launch), launch.kernel)

    def _program(self, launch: Launch) -> cl.Program:
        with self._lock:
            if (program := self._programs.get(launch.program)) is None:
                text = source("opencl", launch.source, launch.defines)
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", cl.CompilerWarning)
                        program = cl.Program(self._context, text).build(OPTIONS)
                except cl.RuntimeError as error:
                    raise self.not_compiled(launch, error) from error
                self._programs[launch.program] = program
            return program

    def run(self, bound: list[tuple[cl.Kernel, tuple[int, ...], tuple[int, ...]]]) -> list[cl.Event]:
        began = perf_counter()
        with self._told():
            events = [cl.enqueue_nd_range_kernel(self._queue, kernel, size, group) for kernel, size, group in bound]
            self._queue.flush()
        with self._lock:
            self.launched += len(bound)
            self.launch_seconds += perf_counter() - began
        return events

    @contextmanager
    def _told(self, nbytes: int = 0) -> Iterator[None]:
        """A driver's error as a sentence."""
        try:
            yield
        except (cl.RuntimeError, cl.LogicError, cl.MemoryError) as error:
            if error.code in FULL:
                raise self.full(nbytes, self.limits.memory - self._used) from error
            if error.code in LOST:
                raise BackendError(
                    f"{self.limits.name} was lost ({first_line(error)}): load the model anew, or on another device (--device)"
                ) from error
            raise BackendError(f"{self.limits.name} failed: {first_line(error)}") from error


def _wait_for(queue: cl.CommandQueue) -> None:
    with suppress(cl.Error):  # a device that is lost runs nothing any more
        queue.finish()


class Bound:
    """Launches with their arguments set. It keeps the buffers alive, which kernels of some drivers do not."""

    def __init__(self, runtime: OpenCLRuntime, launches: list[tuple[Launch, cl.Kernel]]) -> None:
        self._runtime, self._launches = runtime, launches
        self._calls = []
        self._names = {(launch.program, launch.kernel, launch.group_size) for launch, _ in launches}
        for launch, kernel in launches:
            kernel.set_args(*map(argument, launch.args))
            first, *more = launch.groups
            rest = (1,) * len(more)
            self._calls.append((kernel, (first * launch.group_size, *more), (launch.group_size, *rest)))

    def __call__(self) -> None:
        self.launch()

    def launch(self) -> list[cl.Event]:
        """An event for each launch, which knows its times when the queue has finished."""
        events = self._runtime.run(self._calls)
        self._runtime._ran |= self._names
        return events

    def __del__(self) -> None:
        for launch, kernel in self._launches:
            self._runtime._spare[launch.program, launch.kernel].append(kernel)
