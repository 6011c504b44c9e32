"""One op applied by a backend to numpy's arrays: by its kernel, or through a plan as a model's graph would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ops
from ops.blocks import FORMATS
from ops.graph import Dim, Graph
from ops.op import Op, Operand
from ops.tensor import Tensor

from ..base import Backend
from .arrays import poisoned

Array = NDArray[Any]
SYMBOLIC = ("T", "S", "U", "C")  # sizes that a step decides


@dataclass(frozen=True)
class Applied:
    outputs: list[Array]
    written: dict[str, Array]  # operands that the op writes, as they are afterwards
    read: dict[str, Array]  # the other arrays, as far as they can be seen afterwards: they must not have changed
    shared: dict[str, str] = field(default_factory=dict)  # output -> operand in whose memory it lies, of numpy's arrays

    @property
    def output(self) -> Array:
        """The first of them, and nearly always the only one."""
        return self.outputs[0]


def apply(backend: Backend, op: Op, operands: Sequence[Array | Tensor], attrs: Mapping[str, Any], path: str) -> Applied:
    """By "kernel", or through a "plan", as a fused op that has no kernel is in any case."""
    is_plan = path == "plan" or (op.fused and backend.kernel_of(op) is None)
    return (by_plan if is_plan else by_kernel)(backend, op, operands, attrs)


def by_kernel(backend: Backend, op: Op, operands: Sequence[Array | Tensor], attrs: Mapping[str, Any]) -> Applied:
    """Call the backend's kernel, or the formula on the host if it has none."""
    buffers = [
        backend.resident(x, backend.form(x, operand.dtype, op)) if isinstance(x, Tensor) else _buffer(backend, x, operand)
        for operand, x in zip(op.inputs, operands, strict=True)
    ]
    kernel = backend.kernel_of(op)
    if kernel is None:
        given = [x if isinstance(x, Tensor) else b for x, b in zip(operands, buffers, strict=True)]
        results = op.results(backend.on_host(op)(*given, **attrs))
    else:
        results = op.results(kernel(*buffers, **attrs))
    backend.synchronize()
    after = {
        o.name: np.array(backend.download(b))
        for o, x, b in zip(op.inputs, operands, buffers, strict=True)
        if not isinstance(x, Tensor)
    }
    return Applied(
        outputs=[np.array(backend.download(result)) for result in results],
        written={o.name: after.pop(o.name) for o in op.inputs if o.written},
        read=after,
        shared={
            output.name: o.name
            for output, result in zip(op.outputs, results, strict=True)
            for o, b in zip(op.inputs, buffers, strict=True)
            if _overlap(result, b)
        },
    )


def by_plan(backend: Backend, op: Op, operands: Sequence[Array | Tensor], attrs: Mapping[str, Any]) -> Applied:
    """Compile a graph of this op, a fused one written out, and run one step of it: fusion and the plan are tested along.

    As in a model, caches, weights and other constants are bound; keys and values are what `kv_write` shows of a cache, of
    which the step writes the last T rows, and whose rows after them hold poison.
    """
    graph = Graph(written_out=True)
    bound: dict[str, Any] = {}
    inputs: dict[str, Array] = {}
    leaves = []
    for operand, x in zip(op.inputs, operands, strict=True):
        shape: list[Dim] = [d if d in SYMBOLIC else n for d, n in zip(operand.dims, x.shape, strict=True)]
        if operand.dtype == "float" and operand.dims[0] == "S" and not isinstance(x, Tensor):
            n_new = _tokens(op, operands, len(x))
            cache = backend.allocate((len(x) + 2, *x.shape[1:]), x.dtype)
            backend.overwrite(cache, poisoned((len(x) + 2, *x.shape[1:]), x.dtype.name, len(x)))
            backend.overwrite(cache, x[:-n_new])
            bound[operand.name] = cache
            inputs[f"new {operand.name}"] = x[-n_new:].astype(np.float32)
            inputs["positions"] = np.arange(len(x) - n_new, len(x))
            leaves.append(
                ops.kv_write(
                    graph.leaf(operand.name, ["C", *shape[1:]]),
                    graph.leaf(f"new {operand.name}", ["T", *shape[1:]]),
                    graph.leaf("positions", ["T"], "int"),
                )
            )
            continue
        leaves.append(graph.leaf(operand.name, shape, operand.dtype))
        if isinstance(x, Tensor):
            bound[operand.name] = x
        elif operand.written:
            bound[operand.name] = _buffer(backend, x, operand)
        elif operand.dtype == "float" and not set(operand.dims) & set(SYMBOLIC):
            bound[operand.name] = Tensor(
                operand.name, x.shape, FORMATS["F32"], np.ascontiguousarray(x, np.float32).view(np.uint8)
            )
        else:
            inputs[operand.name] = x
    graph.outputs = [*op.results(op(*leaves, **attrs))]
    results = backend.compile(graph, bound)(inputs)
    return Applied(
        [np.array(backend.download(result)) for result in results],
        written={o.name: np.array(backend.download(bound[o.name])) for o in op.inputs if o.written},
        read={o.name: np.array(inputs[o.name]) for o in op.inputs if o.name in inputs},
    )


def _tokens(op: Op, operands: Sequence[Array | Tensor], seen: int) -> int:
    """T of this call: how many of the seen rows are new."""
    sizes = op.sizes([x.shape for x in operands], {})
    return min(int(sizes.get("T", 1)), seen)


def _buffer(backend: Backend, array: Array, operand: Operand) -> Any:
    """An uploaded array; what is a cache, or seen of one, lies in memory that `allocate` gave."""
    if operand.dtype != "float" or operand.dims[0] not in ("S", "C"):
        return backend.upload(array)
    buffer = backend.allocate(array.shape, array.dtype)
    backend.overwrite(buffer, array)
    return buffer


def _overlap(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and bool(np.shares_memory(a, b))
