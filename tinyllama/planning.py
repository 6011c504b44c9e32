"""What a run will take of memory, before it runs: weights, KV cache and scratch, on the host and on a device.

The counting is that of a real run (device_memory.py), done with a device that exists on paper. So a plan for a model and the
load summary of its run agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from backends.base import Backend, Buffer, Device, Options
from backends.device import launches, products  # noqa: F401  (they fill the table)
from backends.device.launch import covers
from backends.device.runtime import Limits
from backends.device.scratch import scratch_bytes
from backends.numpy import Numpy
from backends.numpy.allocator import give_back_freed_memory
from backends.registry import get_backend
from ops.errors import BackendError
from ops.graph import Graph
from ops.op import Op
from ops.tensor import MadeRows

from .build import Built, build
from .checks import whole_number
from .device_memory import Demand, Needs, place_last
from .formats.file_bytes import let_go_of_pages
from .formats.model_file import ModelFile
from .kv_cache import TYPES, KvTypes, cache_bytes, cache_dtypes, cache_shapes
from .memory import mib, resident
from .offload import HOST, Placement, is_device
from .tokenizer import Tokenizer


class OnPaper(Backend):
    """A device with every kernel and the memory that it is given; nothing can be computed on it."""

    name: ClassVar[str] = "device"
    kv_dtype: ClassVar[DTypeLike] = np.float16
    kv_grows: ClassVar[bool] = False

    @classmethod
    def devices(cls) -> list[Device]:
        return [Device("on paper", "GPU", 0, "none")]

    def memory_free(self) -> int | None:
        return self.options.device_memory

    def describe(self) -> str:
        memory = self.options.device_memory
        return "device" if memory is None else f"device of {mib(memory)}"

    def kernel_of(self, op: Op) -> Callable[..., Buffer] | None:
        return partial(_nothing_runs, op) if covers(op) else None

    def scratch_bytes(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        return scratch_bytes(ON_PAPER, self.fused(graph), sizes)


ON_PAPER = Limits("on paper", "gpu", group_size=256, local_memory=32 << 10, allocation=1 << 40, memory=1 << 40)  # as usual


def _nothing_runs(op: Op, *operands: Any, **attrs: Any) -> Buffer:
    raise BackendError(f"{op.name} cannot run on a device that exists on paper only")


@dataclass(frozen=True)
class HostNeeds(Needs):
    """Bytes resident on the host: what its own layers take, and what lies beside."""

    mapped: int = 0  # pages of the file that a step touches; the system may take them back, they are read again then
    program: int = 0  # Python, its libraries, the vocabulary
    device: int = 0  # all of a device that computes in this memory, as PoCL does: its buffers, and its kernels

    @property
    def total(self) -> int:
        return super().total + self.mapped + self.program + self.device


@dataclass(frozen=True)
class MemoryPlan:
    """A model, a length of context and a placement, counted. Made by `plan`."""

    file: ModelFile
    demand: Demand
    placement: Placement
    device: Backend  # that of -ngl; it may have no layer
    fitting: int  # the largest -ngl that fits into the device's memory; n_layer + 1 is everything

    @property
    def n_layer(self) -> int:
        return self.demand.built.config.n_layer

    @property
    def n_offloaded(self) -> int:
        """As llama.cpp counts: the output is one more."""
        return self.placement.count(self.device)

    @property
    def on_device(self) -> Needs:
        return self.demand.on_devices(self.placement).get(self.device, Needs())

    @property
    def matrices_on_device(self) -> int:
        """Bytes of the weights of products there, without norms: what llama.cpp of May 2023 put on a card."""
        parts = [part for backend, part in self.placement.parts(self.demand.built.graph) if backend is self.device]
        names = {v.name for part in parts for v in part.leaves.values() if v.dtype == "weight"}
        return sum(self.demand.built.leaves[name].nbytes for name in names)

    @property
    def fits(self) -> bool:
        free = self.device.memory_free()
        return free is None or self.on_device.total <= free

    def on_host(self, tokenizer: Tokenizer | None = None) -> HostNeeds:
        """What numpy's layers take: weights in float32 as far as its budget goes, the others as they are mapped.

        tokenizer: the model's, if there is one already, since its tables count too.
        """
        built, host = self.demand.built, [backend for backend in self.placement.backends if not is_device(backend)]
        parts = [(backend, part) for backend, part in self.placement.parts(built.graph) if backend in host]
        read = {  # a table of which a step reads a few rows stays as it is
            value.name: built.leaves[value.name]
            for _, part in parts
            for node in part.nodes
            for value, operand in zip(node.inputs, node.op.inputs, strict=True)
            if value.name in built.leaves and operand.name not in node.op.touches
        }
        budgets = [backend.weights.budget for backend in host if isinstance(backend, Numpy)]
        left, weights, mapped = min(budgets, default=0), 0, 0
        for tensor in read.values():
            size = 4 * tensor.n_params
            if size <= left:
                weights, left = weights + size, left - size
            elif self.file.mapped:  # else the program has it already
                mapped += tensor.nbytes
        return HostNeeds(
            weights=weights,
            kv_cache=sum(n for name, n in self._caches().items() if self._backend_of(name) in host),
            scratch=max((backend.scratch_bytes(part, self.demand.sizes) for backend, part in parts), default=0),
            mapped=mapped,
            program=program_bytes(self.file, tokenizer),
            device=sum(
                needs.total - self._tables(device) + beside
                for device, needs in self.demand.on_devices(self.placement).items()
                if (beside := device.beside_buffers()) is not None
            ),
        )

    def _tables(self, device: Backend) -> int:
        """Bytes that a device which computes in this memory maps and hardly reads: tables of which it takes some rows."""
        built = self.demand.built
        parts = [part for backend, part in self.placement.parts(built.graph) if backend is device]
        forms: dict[tuple[str, str], bool] = {}  # is only looked up
        for node in (node for part in parts for node in device.fused(part).nodes):
            for value, operand in zip(node.inputs, node.op.inputs, strict=True):
                if (tensor := built.leaves.get(value.name)) is not None and not isinstance(tensor.data, MadeRows):
                    key = value.name, device.form(tensor, value.dtype, node.op)
                    forms[key] = forms.get(key, True) and operand.name in node.op.touches
        return sum(device.resident_bytes(built.leaves[name], form) for (name, form), looked_up in forms.items() if looked_up)

    def kv_bytes(self, type: str) -> int:
        """Of all layers, in f16 or f32."""
        shapes = cache_shapes(self.demand.built.graph)
        return sum(cache_bytes(shapes, dict.fromkeys(shapes, TYPES[type]), self.demand.n_ctx).values())

    def _caches(self) -> dict[str, int]:
        shapes = cache_shapes(self.demand.built.graph)
        return cache_bytes(shapes, cache_dtypes(shapes, self.placement.layers, self.demand.types), self.demand.n_ctx)

    def _backend_of(self, cache: str) -> Backend:
        return self.placement.layers[cache_shapes(self.demand.built.graph)[cache][0]]


def program_bytes(file: ModelFile, tokenizer: Tokenizer | None = None) -> int:
    """What Python, the libraries and the vocabulary take, measured: this process has just loaded what a run would load.

    A file that was read into memory, because it is not mapped, is a part of it.
    """
    from . import model  # noqa: F401  (a run imports all of it)

    if tokenizer is None and "tokenizer.ggml.tokens" in file.metadata:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    if tokenizer is not None:
        tokenizer.encode("a")  # which makes its tables
    np.random.default_rng()  # numpy loads this part when it is asked for, as sampling does
    let_go_of_pages()  # those of the file that finding the tensors has read
    give_back_freed_memory()  # which a step takes again
    return resident() or 0


def plan(
    file: ModelFile,
    *,
    n_ctx: int | None = None,
    n_gpu_layers: int | None = None,
    device: Backend | None = None,
    device_memory: int | None = None,
    type_k: str | None = None,
    type_v: str | None = None,
    n_batch: int = 512,
    n_threads: int | None = None,
    weights_memory: int | None = None,
) -> MemoryPlan:
    """Count what a run of this model takes.

    n_ctx: None or 0 for the model's own; n_gpu_layers: the last so many on the device, None for as many as fit into
    device_memory bytes (none at all, if that is not given either); device: a backend whose device's memory is asked,
    None for one on paper. n_threads, weights_memory: numpy's, as in `Model.load`.
    """
    built: Built = build(file)
    demand = Demand(built, KvTypes(type_k, type_v), n_ctx or built.config.n_ctx_train, whole_number("n_batch", n_batch, 1))
    device = device or OnPaper(Options(device_memory=device_memory))
    host = get_backend(HOST, Options(n_threads=n_threads, weights_memory=weights_memory))
    everything = built.config.n_layer + 1
    most = place_last(demand, device, lambda: host, None)
    if n_gpu_layers is None:
        placement = most if device.memory_free() is not None else Placement.last_on(device, 0, lambda: host, everything - 1)
    else:
        n = everything if n_gpu_layers < 0 else min(n_gpu_layers, everything)
        placement = Placement.last_on(device, n, lambda: host, everything - 1)
    return MemoryPlan(file, demand, placement, device, most.count(device))
