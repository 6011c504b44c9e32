"""A device that is not there: its memory is counted to the byte, its kernels are the formulas, and it fails when told to."""

from __future__ import annotations

import weakref
from math import prod
from threading import RLock

import numpy as np

from backends import Backend, Options
from backends.base import Device
from backends.plan import LoopPlan
from ops.errors import BackendError
from ops.tensor import Tensor

MIB = 2**20


class DriverError(Exception):
    """What a driver raises: no sentence for a person."""


class DriverOutOfMemory(DriverError, MemoryError):
    """As CuPy's is: a MemoryError too."""


class Memory:
    """A piece of the device's memory. `content` is a numpy array, or a Tensor whose blocks stay as they are."""

    def __init__(self, content, shape, nbytes):
        self.content, self.shape, self.nbytes = content, shape, nbytes


class Pretend(Backend):
    name = "pretend"
    kv_dtype = np.float16
    kv_grows = False
    lacks = frozenset()  # ops without a kernel

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        devices, wanted = self.devices(), self.options.device or "0"
        found = [d for i, d in enumerate(devices) if wanted in (str(i), d.name)]
        if not found:
            raise BackendError(f"pretend has no device '{wanted}'")
        self.device = found[0]
        cap = self.options.device_memory
        self.size = self.device.memory if cap is None else min(cap, self.device.memory)
        self.used = self.most_used = 0
        self.fails_at = ""  # the op at which the device is lost
        self.crossed = 0  # bytes of activations that came or went while a step ran
        self._counting = RLock()  # memory is let go wherever Python happens to be

    @classmethod
    def devices(cls):
        return [Device("large", "GPU", 64 * MIB, "1.0"), Device("small", "GPU", MIB // 4, "1.0")]

    def describe(self):
        return f"pretend on {self.device.name}"

    # Where arrays live

    def _keep(self, content, shape, nbytes):
        with self._counting:
            if self.used + nbytes > self.size:
                raise DriverOutOfMemory(f"CL_MEM_OBJECT_ALLOCATION_FAILURE\n{nbytes}")
            self.used += nbytes
            self.most_used = max(self.most_used, self.used)
        memory = Memory(content, shape, nbytes)
        weakref.finalize(memory, self._let_go, nbytes)
        return memory

    def _let_go(self, nbytes):
        with self._counting:
            self.used -= nbytes

    def allocate(self, shape, dtype):
        array = np.zeros(shape, dtype)
        return self._keep(array, shape, array.nbytes)

    def upload(self, array):
        self.crossed += array.nbytes
        return Memory(array.copy(), array.shape, array.nbytes)  # of a step: it lies in the plan's scratch

    def download(self, buffer):
        self.crossed += buffer.nbytes
        return buffer.content.copy()

    def overwrite(self, buffer, array):
        buffer.content[: len(array)] = array

    def weight(self, tensor: Tensor):
        """Its blocks as they are, in a Tensor of its own: the file's would keep itself in the table of what is resident."""
        return Memory(Tensor(tensor.name, tensor.shape, tensor.format, tensor.data), tensor.shape, tensor.nbytes)

    def resident(self, tensor: Tensor, dtype: str):
        with self._resident_lock:
            known = self._resident[dtype]
            if tensor not in known:
                made = self.weight(tensor) if dtype == "weight" else self.upload(tensor.dequantize())
                known[tensor] = self._keep(made.content, made.shape, made.nbytes)
            return known[tensor]

    # Memory

    def memory_free(self):
        return self.size - self.used

    def memory_used(self):
        return self.used

    def scratch_bytes(self, graph, sizes):
        known = {**sizes, "S": sizes["C"]}
        values = [n.output for n in self.fused(graph).nodes]
        return 4 * max(prod(known.get(d, d) for d in v.shape) for v in values)

    # Running

    def kernel_of(self, op):
        if op.fused or op.name in self.lacks:
            return None

        def run(*operands, **attrs):
            if op.name == self.fails_at:
                raise DriverError("the device\nwas lost")
            results = op.results(op.formula(*(x.content for x in operands), **attrs))
            return op.returned([Memory(result, result.shape, result.nbytes) for result in results])

        return run

    def compile(self, graph, leaves, sizes=None):
        plan = LoopPlan(self, graph, leaves)
        plan.scratch = self.allocate((self.scratch_bytes(graph, sizes),), np.uint8)
        return plan


class NoRope(Pretend):
    """Lacks the kernel of one op."""

    name = "norope"
    lacks = frozenset({"rope"})
