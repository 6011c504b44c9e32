"""What OpenCL and CUDA each have to provide, and no more: memory, copies, kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ops.errors import BackendError

if TYPE_CHECKING:
    from .array import DeviceArray, DeviceWeight
    from .launch import Launch

Bytes = NDArray[np.uint8]
Integers = Literal["", "avx512vnni", "avx2", "portable"]
MANY = 256  # freed buffers that may wait for the device


class Library(Protocol):
    """What multiplies many tokens better than our kernels: cuBLAS."""

    def takes(self, x: DeviceArray, weight: DeviceWeight) -> bool: ...

    def launches(self, x: DeviceArray, weight: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
        """y = x W^T"""


@dataclass(frozen=True)
class Tuning:
    """Sizes with which products are fast. Which ones are best depends on the device, and `tuning.py` measures it.

    Measured and not tuned, since it made no difference with PoCL on AVX-512, AVX2 and portable C: the weights of a work-group
    where tokens are many (2^14 to 2^18). How many tokens a CPU takes one by one depends on the weights'
    format (2 in Q3_K, 12 in F16) more than on the CPU.
    """

    # Of a tile of integer products: a group of weights is unpacked once for all. Against 4, 8 took 4% less time in Q4_K with
    # AVX-512 and 25% less in Q6_K, and 16 took 4% more than 8. With AVX2, which has half as many registers and unpacks to
    # memory, 16 took 15 to 25% less than 8
    tokens: int = 8
    # Of an integer product that is over soon, for each core, so that one may be late. With 4 a token took 4% longer, with 1 in
    # quiet times 3% less
    groups: int = 2
    # Up to so many tokens, unpacking the weights again for each of them is faster than bringing them into a form that serves
    # many. PoCL, 1536 x 768 on two cores: matvec takes 0.06 ms a token in Q4_1, 0.09 in Q6_K, 0.11 in F32; matmul_panel 0.35 to
    # 0.45 ms for 1 to 12 tokens in any format. With the kernels for GPUs, 6 to 24 tokens took a third less time with 16
    few: int = 4
    tile: int = 64  # tokens and rows of a tile on a GPU, at most: as many as it has room for. With PoCL 32 took 10% less time


def untuned(integers: Integers) -> Tuning:
    """What is taken as long as nothing was measured."""
    return Tuning(tokens=16) if integers == "avx2" else Tuning()


# Among which it chooses. The default is in each.
CANDIDATES = {"tokens": (4, 8, 16), "groups": (1, 2, 3, 4), "few": (4, 8, 16, 32), "tile": (64, 32, 16, 8)}


@dataclass(frozen=True)
class Limits:
    """What a device can do, asked of its driver."""

    name: str
    kind: Literal["cpu", "gpu"]  # a CPU wants a work-group of one work-item that does much; a GPU many that do little
    group_size: int  # work-items of a group at most
    local_memory: int  # bytes that a work-group may share
    allocation: int  # bytes of the largest single buffer
    memory: int  # bytes that may be used in all
    cores: int = 1  # that compute at once, each a work-group
    integers: Integers = ""  # a CPU multiplies quantised weights by x rounded to bytes, with these instructions; "": by floats
    library: Library | None = None
    driver: str = ""  # its name and version
    tuning: Tuning = Tuning()


class Memory:
    """A buffer of the device. It is counted until it is let go, and let go when the device is done with it."""

    def __init__(self, runtime: Runtime, handle: Any, nbytes: int) -> None:
        self.runtime, self.handle, self.nbytes = runtime, handle, nbytes

    def __del__(self) -> None:
        self.runtime.let_go(self)


class Runtime(ABC):
    """One device with one queue, in which things happen in order. Used by several threads."""

    limits: Limits
    device_key: Any  # equal for runtimes of the same device

    def __init__(self) -> None:
        self.launched, self.launch_seconds = 0, 0.0  # kernels, and what it took the host to launch them
        self._used = 0
        self._lock = RLock()  # also taken by Memory.__del__, which may run anywhere
        self._let_go: deque[tuple[Any, int]] = deque()  # buffers nobody holds, which running kernels may still use

    # Memory

    def allocate(self, nbytes: int) -> Memory:
        """A buffer of undefined content. BackendError if the device, or what the user allows of it, is full."""
        return self._made(nbytes, lambda: self._allocate(max(nbytes, 1)))

    def zeros(self, nbytes: int) -> Memory:
        """A buffer of zeros."""
        memory = self.allocate(nbytes)
        self.clear(memory)
        return memory

    def upload(self, data: Bytes) -> Memory:
        """A buffer with this content: the array's own memory where device and host share it, else a copy.

        The array must not change while the buffer lives.
        """
        return self._made(data.nbytes, lambda: self._upload(data))

    def used(self) -> int:
        """Bytes of all buffers that are alive."""
        if self._let_go:
            self.finish()
        return self._used

    def let_go(self, memory: Memory) -> None:
        with self._lock:
            self._let_go.append((memory.handle, memory.nbytes))

    def _made(self, nbytes: int, make: Callable[[], Any]) -> Memory:
        if len(self._let_go) > MANY or self._used + nbytes > self.limits.memory:
            self.finish()
        with self._lock:
            free = self.limits.memory - self._used
            if nbytes > free:
                raise self.full(nbytes, free)
            self._used += nbytes
        try:
            return Memory(self, make(), nbytes)
        except BaseException:
            with self._lock:
                self._used -= nbytes
            raise

    def full(self, nbytes: int, free: int) -> BackendError:
        """The error of a device without memory for one more buffer."""
        return BackendError(
            f"out of memory on {self.limits.name}: {nbytes / 2**20:.1f} MiB more are needed and {max(free, 0) / 2**20:.1f} MiB "
            "are free: use fewer layers (-ngl), a shorter context (-c), or smaller batches (-b)"
        )

    def finish(self) -> None:
        """Wait until the device has done all it was told, and give back what was let go before."""
        with self._lock:
            waiting, self._let_go = self._let_go, deque()
            try:
                self._finish()
            except BaseException:
                self._let_go.extendleft(reversed(waiting))
                raise
            self._used -= sum(nbytes for _, nbytes in waiting)

    @abstractmethod
    def _allocate(self, nbytes: int) -> Any:
        """The driver's buffer."""

    @abstractmethod
    def _upload(self, data: Bytes) -> Any:
        """The driver's buffer with this content, C-contiguous."""

    @abstractmethod
    def _finish(self) -> None:
        """Wait for the queue."""

    # Copies

    @abstractmethod
    def write(self, memory: Memory, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the beginning of a buffer; it may change when this returns."""

    @abstractmethod
    def read(self, memory: Memory, array: NDArray[Any]) -> None:
        """Fill a contiguous array from the beginning of a buffer, after all that was launched before."""

    @abstractmethod
    def copy(self, target: Memory, source: Memory, nbytes: int) -> None:
        """Copy the first bytes from one buffer to another."""

    @abstractmethod
    def clear(self, memory: Memory) -> None:
        """Fill a buffer with zeros."""

    # Kernels

    @abstractmethod
    def prepare(self, launches: Sequence[Launch]) -> Callable[[], None]:
        """Compile what is new, bind the arguments once: what comes back launches all of them, in their order.

        The launches' buffers stay alive as long as it does. CUDA captures them in a graph.
        """

    @abstractmethod
    def timed(self, run: Callable[[], None]) -> float:
        """Run what `prepare` has made, and wait for it: the seconds that the device itself computed."""

    def check(self, launch: Launch) -> None:
        """BackendError if it asks more of a work-group than the device has."""
        has = self.limits
        if launch.group_size > has.group_size or launch.local_bytes > has.local_memory:
            raise BackendError(
                f"{has.name} has {has.local_memory} bytes of local memory and {has.group_size} work-items a group, but kernel "
                f"{launch.kernel} needs {launch.local_bytes} and {launch.group_size}: choose another device (--device)"
            )

    def not_compiled(self, launch: Launch, error: Exception) -> BackendError:
        """The error of a kernel that the device's compiler refuses."""
        return BackendError(
            f"kernel {launch.kernel} ({launch.source}) does not compile on {self.limits.name}: {first_line(error)}: "
            "update its driver, choose another device (--device)"
            + (", other kernels (--device-features portable) or products of floats (--precise)" if self.limits.integers else "")
        )

    @abstractmethod
    def is_compiled(self, launch: Launch) -> bool:
        """Has its kernel been built and run in this process?"""


def argument(x: Memory | int | float) -> Any:
    """A kernel's argument as drivers take it: the buffer's handle, an int32, a float32."""
    if isinstance(x, Memory):
        return x.handle
    return np.float32(x) if isinstance(x, float) else np.int32(x)


def first_line(error: Exception) -> str:
    """A driver's message in one line: the compiler's first error, if that is what it is about."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)[:300]
