"""A graph prepared for a device: buffers planned by lifetime, arguments bound once, one list of launches a step.

What differs from step to step lies in a few small buffers: the tokens, their positions, the rows whose logits are wanted.
Kernels read them there. So the launches for one token are always the same ones, and are bound, or captured, a single time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ops.errors import ShapeError
from ops.graph import Graph, Node, Value
from ops.tensor import Tensor

from ..base import Buffer, Event, Observer, Progress
from ..plan import sizes_of
from .array import DeviceArray, DeviceWeight, PanelWeight
from .launch import Launch
from .runtime import Memory
from .scratch import Sizes, own_values, rooms, scratch, sized, table, views
from .steps import together

if TYPE_CHECKING:
    from .backend import DeviceBackend

Array = DeviceArray | DeviceWeight | PanelWeight
Arrays = dict[Value, DeviceArray]
Call = Callable[[], None]


@dataclass(frozen=True)
class Program:
    """The launches for steps of one size: in one call, of no node in particular; or a call for each node, for an observer."""

    arrays: Arrays
    calls: list[tuple[Node | None, Call]]


class DevicePlan:
    def __init__(self, backend: DeviceBackend, graph: Graph, leaves: Mapping[str, Tensor | Buffer], sizes: Sizes) -> None:
        self._backend, self._runtime, self._graph = backend, backend.runtime, graph
        self._inputs = {name: v for name, v in graph.leaves.items() if name not in leaves}
        self._caches = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, DeviceArray)}
        self._tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
        self._places = self._fewest_places()
        self._resident: dict[tuple[str, str], Array] = {}  # by name and form: a tied table may be needed in two
        # no size depends on S, unless attention runs in parts, or what is seen of a cache is a result
        self._needs_seen = any("S" in v.shape for v in [*own_values(graph, self._inputs.values()), *graph.outputs])
        self._largest = {"T": 1, "U": 1, **sizes}
        self._take_room(self._largest)
        self._programs: dict[tuple[Any, ...], Program] = {}
        self._lock = RLock()  # a context is one thread's; if two use it all the same, their steps do not mix

    def _fewest_places(self) -> int:
        """Of the smallest cache; where there is none, no position is too high."""
        leaves = self._graph.leaves
        return min((c.shape[0] for name, c in self._caches.items() if leaves[name].shape[0] == "C"), default=1 << 31)

    def rebind(self, name: str, buffer: Buffer) -> None:
        self._programs.clear()  # first: if Ctrl-C comes between, none of them may be left
        self._caches[name] = buffer
        self._places = self._fewest_places()

    def warm_up(self, progress: Progress) -> None:
        """Bring the weights to the device, and compile each kernel that steps of one token, two, some and many will want."""
        self._backend.tune(progress)
        self._bring_weights(progress)
        todo: dict[Any, tuple[int, Arrays, list[Launch]]] = {}
        for n_tokens in sorted({min(n, self._largest["T"]) for n in (1, 2, 3, self._largest["T"])}):
            sizes = {**self._largest, "T": n_tokens, "U": min(n_tokens, self._largest["U"]), "S": n_tokens}
            arrays = self._arrays(sizes, self._spare_caches(n_tokens))
            launches = [launch for node in self._graph.nodes for launch in self._launches(node, arrays)]
            each = {(launch.program, launch.kernel, launch.group_size): launch for launch in launches}
            as_run, notes = together(self._runtime.limits, list(each.values()), self._tables[0])
            if notes and not all(map(self._runtime.is_compiled, as_run)):  # kernels of their own are for an observer only
                todo["together"] = (n_tokens, arrays, list(each.values()))
            for key, launch in {} if notes else each.items():
                if not self._runtime.is_compiled(launch):
                    todo.setdefault(key, (n_tokens, arrays, [launch]))
        if "together" in todo:
            self._programs.clear()  # their table is used for it
        written = 0
        for n_tokens, arrays, launches in progress(list(todo.values()), "compiling kernels"):
            if written != n_tokens:  # what kernels find their way by must be right; the numbers may be anything
                for name, value in self._inputs.items():
                    if value.dtype == "int":
                        self._write(
                            arrays[value], np.arange(n_tokens) if name == "positions" else np.zeros(arrays[value].shape)
                        )
                written = n_tokens
            self._runtime.prepare(self._together(launches, self._largest))()
            self._runtime.finish()

    def _spare_caches(self, n_tokens: int) -> dict[str, DeviceArray]:
        """Caches of a few rows that lie where results do: nothing may be written to those in use."""
        memory = max(self._buffers, key=lambda m: m.nbytes, default=None)
        return {
            name: DeviceArray(memory, (n_tokens, *cache.shape[1:]), cache.dtype) if memory else cache
            for name, cache in self._caches.items()
        }

    def __call__(self, inputs: Mapping[str, NDArray[Any]], observe: Observer | None = None) -> list[Buffer]:
        sizes = self._sizes(inputs)
        with self._lock:
            program = self._program(sizes, observe is not None)
            for name, array in inputs.items():
                self._write(program.arrays[self._inputs[name]], array)
            try:
                for node, run in program.calls:
                    if observe is None or node is None:
                        run()
                    else:
                        self._observed(node, run, program.arrays, sizes, observe)
            except BaseException:
                self._runtime.finish()  # nothing may run on that the caller thinks is over
                raise
            return [program.arrays[v] for v in self._graph.outputs]

    def _observed(self, node: Node, run: Call, arrays: Arrays, sizes: Sizes, observe: Observer) -> None:
        seconds = self._runtime.timed(run)
        operands: list[Any] = [_known(self._operand(node, v, arrays), sizes) for v in node.inputs]
        outputs: list[Any] = [_known(arrays[v], sizes) for v in node.outputs]
        observe(Event(node, operands, outputs, seconds, self._backend, on_host=False))

    def _sizes(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """What the letters stand for in this step. S is what the last token sees."""
        sizes = sizes_of(self._inputs, inputs)
        if "positions" in inputs:
            sizes.setdefault("S", int(inputs["positions"][-1]) + 1)
        if sizes.get("S", 0) > self._places:  # a kernel would write there all the same
            raise ShapeError(f"a token at position {sizes['S'] - 1}, but the cache has {self._places} places")
        return sizes

    def _program(self, sizes: dict[str, int], observed: bool) -> Program:
        if not self._needs_seen:
            sizes = {dim: size for dim, size in sizes.items() if dim != "S"}
        key = (observed, *sorted(sizes.items()))
        if key not in self._programs:
            self._bring_weights(lambda items, told: items)
            self._make_room(sizes)
            for old in [key for key in self._programs if not _is_decode(key)]:  # of other lengths only the last one stays
                del self._programs[old]
            arrays = self._arrays(sizes, self._caches)
            by_node = [(node, self._launches(node, arrays)) for node in self._graph.nodes]
            calls: list[tuple[Node | None, list[Launch]]] = [*by_node]
            if not observed:
                calls = [(None, self._together([launch for _, todo in by_node for launch in todo], sizes))]
            self._programs[key] = Program(arrays, [(node, self._runtime.prepare(todo)) for node, todo in calls])
        return self._programs[key]

    def _together(self, launches: Sequence[Launch], sizes: Sizes) -> list[Launch]:
        """A step's launches; nearly all of them in one, if they are for one token. The plan keeps alive what they work on."""
        table = self._tables[min(sizes.get("U", 0), 1)]
        launches, notes = together(self._runtime.limits, launches, table)
        if table and notes:
            self._runtime.clear(table)
            for note in notes:  # one by one: then they share a few kernels, and to make a kernel takes longer
                self._runtime.prepare([note])()
            self._runtime.finish()
        return launches

    def _bring_weights(self, progress: Progress) -> None:
        tensors, nodes = self._tensors, self._graph.nodes
        wanted = {self._form(n, v): tensors[v.name] for n in nodes for v in n.inputs if v.name in tensors}
        missing = [(key, tensor) for key, tensor in wanted.items() if key not in self._resident]
        for (name, form), tensor in progress(missing, "bringing weights to the device"):
            self._resident[name, form] = self._backend.resident(tensor, form)
        self._backend.keep_panels()

    def _form(self, node: Node, leaf: Value) -> tuple[str, str]:
        """A weight's name, and the form in which this node takes it."""
        return leaf.name, self._backend.form(self._tensors[leaf.name], leaf.dtype, node.op)

    def _operand(self, node: Node, value: Value, arrays: Arrays) -> Array:
        return self._resident[self._form(node, value)] if value.name in self._tensors else arrays[value]

    def _make_room(self, sizes: Sizes) -> None:
        """Wider buffers, if this step is larger than any that was expected."""
        limit = {"S": self._largest.get("C", 0), **self._largest}
        if all(size <= limit.get(dim, 0) for dim, size in sizes.items()):
            return
        largest = {dim: max(sizes.get(dim, 0), self._largest.get(dim, 0)) for dim in {*sizes, *self._largest}}
        self._programs.clear()
        self._buffers.clear()  # before the new ones: both may not fit
        self._largest = {}  # if memory runs out now, the next step comes here again
        self._rooms.clear()
        self._tables.clear()
        self._take_room(largest)
        self._largest = largest

    def _take_room(self, largest: Sizes) -> None:
        """Memory for what lies between the ops, and for what their launches hand on to each other."""
        self._shared = scratch(self._graph, list(self._inputs.values()), largest)
        self._buffers: list[Memory] = [self._runtime.allocate(n) for n in self._shared.sizes]
        self._rooms = [self._runtime.allocate(n) for n in rooms(self._runtime.limits, self._graph, largest)]
        n = table(self._runtime.limits, self._graph)
        self._tables = [self._runtime.allocate(n) if n else None for _ in range(2)]

    def _arrays(self, sizes: Sizes, caches: Mapping[str, DeviceArray]) -> Arrays:
        """Every value's array for a step of these sizes, but the weights'."""
        leaves = self._graph.leaves
        arrays: Arrays = {leaves[name]: cache for name, cache in caches.items() if name in leaves}
        own = zip(own_values(self._graph, self._inputs.values()), self._shared.buffer_of, strict=True)
        for value, buffer in own:
            dtype = np.dtype(np.int32 if value.dtype == "int" else np.float32)
            arrays[value] = DeviceArray(self._buffers[buffer], sized(value.shape, sizes), dtype)
        for node in self._graph.nodes:
            for value, viewed in views(node):
                arrays[value] = arrays[viewed].seen_as(sized(value.shape, sizes))
        return arrays

    def _launches(self, node: Node, arrays: Arrays) -> list[Launch]:
        operands = [self._operand(node, v, arrays) for v in node.inputs]
        return self._backend.launches(node.op, operands, [arrays[v] for v in node.outputs], node.attrs, self._rooms)

    def _write(self, target: DeviceArray, array: NDArray[Any]) -> None:
        self._runtime.write(target.memory, np.ascontiguousarray(array, target.dtype))


def _known(array: Array, sizes: Sizes) -> Array:
    """The array with numbers for all of its sizes, as an observer wants it."""
    return array.seen_as(sized(array.shape, sizes)) if isinstance(array, DeviceArray) else array


def _is_decode(key: tuple[Any, ...]) -> bool:
    """A program for one token, which will be wanted again and again."""
    sizes = dict(key[1:])
    return sizes.get("T") == 1 and "S" not in sizes
