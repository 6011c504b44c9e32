"""CUDA as CuPy gives it: one device, one stream, kernels that NVRTC compiles, and a graph for launches that come again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime as cuda
from numpy.typing import NDArray

from ops.errors import BackendError

from ..device.array import DeviceArray
from ..device.launch import Launch
from ..device.runtime import Limits, Memory, Runtime, argument, first_line
from ..device.sources import source
from .products import CUBLAS

Call = Callable[[], None]

FULL = 2  # cudaErrorMemoryAllocation


class CudaRuntime(Runtime):
    def __init__(self, number: int, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self._device = cupy.cuda.Device(number)
        self.device_key = number
        with self._told():
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self.has_cublas = _has_cublas()
        self._modules: dict[tuple[Any, ...], cupy.RawModule] = {}
        self._ran: set[tuple[Any, ...]] = set()

    # Memory

    def _allocate(self, nbytes: int) -> cupy.cuda.Memory:
        with self._told(nbytes):
            return cupy.cuda.Memory(nbytes)  # the driver's own, past CuPy's pool: what is let go is free for everybody

    def _upload(self, data: NDArray[np.uint8]) -> cupy.cuda.Memory:
        handle = self._allocate(max(data.nbytes, 1))
        self._copy(handle.ptr, data.ctypes.data, data.nbytes, cuda.memcpyHostToDevice)
        return handle

    def _finish(self) -> None:
        with self._told():
            self._stream.synchronize()

    # Copies

    def write(self, memory: Memory, array: NDArray[Any]) -> None:
        # memory of the host that is not pinned is copied aside before the call returns (CUDA's API synchronization behavior)
        self._copy(memory.handle.ptr, array.ctypes.data, array.nbytes, cuda.memcpyHostToDevice)
        with self._lock:
            self._let_go.append(
                (array, 0)
            )  # kept all the same until the device is done: some read the host's memory themselves

    def read(self, memory: Memory, array: NDArray[Any]) -> None:
        self._copy(array.ctypes.data, memory.handle.ptr, array.nbytes, cuda.memcpyDeviceToHost)
        self.finish()

    def copy(self, target: Memory, source: Memory, nbytes: int) -> None:
        self._copy(target.handle.ptr, source.handle.ptr, nbytes, cuda.memcpyDeviceToDevice)

    def clear(self, memory: Memory) -> None:
        with self._told():
            cuda.memsetAsync(memory.handle.ptr, 0, memory.nbytes, self._stream.ptr)

    def _copy(self, target: int, source: int, nbytes: int, direction: int) -> None:
        with self._told():
            cuda.memcpyAsync(target, source, nbytes, direction, self._stream.ptr)

    # Kernels

    def prepare(self, launches: Sequence[Launch]) -> Call:
        return Bound(self, launches)

    def timed(self, run: Callable[[], None]) -> float:
        """Between two events on the stream: of short kernels, that the driver is told of them meanwhile counts as well."""
        with self._lock, self._told():
            began, ended = cupy.cuda.Event(), cupy.cuda.Event()
            began.record(self._stream)
            run()
            ended.record(self._stream)
            self.finish()
            return float(cupy.cuda.get_elapsed_time(began, ended)) / 1e3

    def is_compiled(self, launch: Launch) -> bool:
        return (launch.program, launch.kernel) in self._ran

    def bind(self, launch: Launch) -> Call:
        """A call that puts this launch, with its arguments, on the current stream."""
        if launch.source == CUBLAS:
            return _product(launch)
        self.check(launch)
        kernel, args = self._kernel(launch), tuple(map(_argument, launch.args))
        return lambda: kernel(launch.groups, (launch.group_size,), args)

    def _kernel(self, launch: Launch) -> cupy.RawKernel:
        with self._lock, self._told():
            if (module := self._modules.get(launch.program)) is None:
                module = cupy.RawModule(code=source("cuda", launch.source, launch.defines))
                try:
                    module.compile()
                except (cupy.cuda.compiler.CompileException, ImportError) as error:
                    raise self.not_compiled(launch, error) from error
                self._modules[launch.program] = module
            return module.get_function(launch.kernel)

    def run(self, calls: Sequence[Call], n_launches: int) -> None:
        """Put them on the stream, with no other thread's in between."""
        with self._lock, self._told(), self._stream:
            began = perf_counter()  # not before: to wait for another thread is no cost of launching
            for call in calls:
                call()
            self.launched += n_launches
            self.launch_seconds += perf_counter() - began

    def capture(self, calls: Sequence[Call]) -> Call:
        """One call for all: the driver checks and orders them now, and later is told of them at once."""
        with self._told(), cupy.cuda.Stream(non_blocking=True) as stream:  # of our own: others may launch meanwhile
            stream.begin_capture()
            try:
                for call in calls:
                    call()
            finally:
                graph = stream.end_capture()
        return lambda: graph.launch()  # on the stream that is current then

    def by_arrays(
        self, function: Callable[..., cupy.ndarray], operands: Sequence[DeviceArray], attrs: Mapping[str, Any]
    ) -> DeviceArray:
        """A function of CuPy's arrays applied to the memory of ours."""
        with self._told(), self._stream:
            pointers = [cupy.cuda.MemoryPointer(x.memory.handle, 0) for x in operands]
            arrays = [cupy.ndarray(x.shape, x.dtype, at) for x, at in zip(operands, pointers, strict=True)]
            result = cupy.ascontiguousarray(function(*arrays, **attrs))
            output = DeviceArray(self.allocate(result.nbytes), result.shape, result.dtype)
            self._copy(output.memory.handle.ptr, result.data.ptr, result.nbytes, cuda.memcpyDeviceToDevice)
            self._stream.synchronize()  # `result` goes back to CuPy's pool now
        return output

    def has_run(self, launches: Sequence[Launch]) -> None:
        self._ran.update((launch.program, launch.kernel) for launch in launches)

    @contextmanager
    def _told(self, nbytes: int = 0) -> Iterator[None]:
        """On this device, and with a driver's error as a sentence."""
        try:
            with self._device:
                yield
        except cuda.CUDARuntimeError as error:
            if error.status == FULL:
                raise self.full(nbytes, self._device.mem_info[0]) from error
            raise self._failed(error) from error
        except cupy.cuda.driver.CUDADriverError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> BackendError:
        return BackendError(
            f"{self.limits.name} failed ({first_line(error)}): start anew, if need be on another device (--device)"
        )


class Bound:
    """Launches with their arguments bound; it keeps their buffers alive.

    The second run captures them as a CUDA graph: the hundreds of launches of a token then cost one. Not the first, which
    loads the kernels, and is the only one for most lengths of a prompt.
    """

    def __init__(self, runtime: CudaRuntime, launches: Sequence[Launch]) -> None:
        self._runtime, self._launches = runtime, launches
        self._calls = [runtime.bind(launch) for launch in launches]
        self._n_runs = 0
        # where cuBLAS is called, products are so large that launching them costs nothing
        self._may_capture = len(launches) > 1 and all(launch.source != CUBLAS for launch in launches)

    def __call__(self) -> None:
        if self._n_runs == 1 and self._may_capture:
            with suppress(BackendError):  # a driver that cannot is told of each launch, as before
                self._calls = [self._runtime.capture(self._calls)]
        self._runtime.run(self._calls, len(self._launches))
        if self._n_runs == 0:
            self._runtime.has_run(self._launches)
        self._n_runs += 1


def _has_cublas() -> bool:
    """CuPy loads the library when it is first asked for."""
    try:
        return cupy.cuda.cublas is not None
    except (ImportError, AttributeError):
        return False


def _product(launch: Launch) -> Call:
    """y[:, first_row : first_row + rows] = x @ dense.T, which cuBLAS, that counts columns first, sees as y.T = dense @ x.T."""
    x, dense, y = (arg.handle.ptr for arg in launch.args if isinstance(arg, Memory))
    n_tokens, n, rows, first_row, m = (arg for arg in launch.args if not isinstance(arg, Memory))
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)  # cuBLAS takes their addresses

    def call() -> None:
        cublas = cupy.cuda.cublas
        cublas.sgemm(
            cupy.cuda.device.get_cublas_handle(),  # this thread's; CuPy has it work on the current stream
            *(cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, rows, n_tokens, n),
            *(one.ctypes.data, dense, n, x, n),
            *(zero.ctypes.data, y + 4 * first_row, m),
        )

    return call


def _argument(x: Memory | int | float) -> Any:
    """As the kernel's parameter lies in memory: an address in 64 bits, an int, a float."""
    return np.uint64(x.handle.ptr) if isinstance(x, Memory) else argument(x)
