"""The contract itself: where arrays live, what may be shared, what stays, what a plan keeps between steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import ops
from ops.blocks import FORMATS
from ops.graph import Graph
from ops.op import OPS
from ops.tensor import Tensor

from ..base import Backend, Device
from .arrays import LAYOUTS, laid_out, poisoned
from .blocks import SCALES, weight
from .check import Draws, check
from .decoder import float_tensor
from .strategies import cases, dtypes
from .tolerances import U

Array = NDArray[Any]
ROWS = (1, 2, 3, 7, 8, 33, 64, 130)
SEEDS = st.integers(0, 2**16)


def _rng(data: Draws) -> np.random.Generator:
    return np.random.default_rng(data.draw(SEEDS, label="seed"))


def _shape(data: Draws) -> tuple[int, ...]:
    return tuple(data.draw(st.sampled_from(ROWS)) for _ in range(data.draw(st.integers(1, 3), label="axes")))


def _cache_shape(data: Draws) -> tuple[int, int, int]:
    rows, k, d = (
        data.draw(st.sampled_from(ROWS)),
        data.draw(st.sampled_from((1, 2, 3))),
        data.draw(st.sampled_from((64, 2, 7, 80))),
    )
    return rows, k, d


def _assert_equal(ours: Array, expected: Array, told: str) -> None:
    assert ours.shape == expected.shape, f"{told} has the shape {list(ours.shape)}, expected {list(expected.shape)}"
    differs = (ours != expected) & ~((ours != ours) & (expected != expected))
    if differs.any():
        at = tuple(int(i) for i in np.argwhere(differs)[0])
        raise AssertionError(f"{told} is wrong at {list(at)}: expected {expected[at]}, got {ours[at]}")


@check("contract-upload", as_it_is=True)
def upload(backend: Backend, data: Draws) -> None:
    """What is uploaded comes back by download, whatever way it lay in memory; float64 may come back rounded to float32."""
    shape, layout = _shape(data), data.draw(st.sampled_from(LAYOUTS), label="layout")
    dtype = data.draw(st.sampled_from(("float32", "float64", "int64", "int32")), label="dtype")
    rng = _rng(data)
    values = rng.integers(-(2**31), 2**31, shape) if dtype.startswith("int") else rng.standard_normal(shape) * 1e4
    array = laid_out(values.astype(dtype), layout)
    before = array.copy()
    buffer = backend.upload(array)
    ours = np.array(backend.download(buffer))
    assert tuple(buffer.shape) == shape, f"the uploaded buffer has the shape {buffer.shape}, expected {shape}"
    assert ours.dtype.kind == array.dtype.kind, f"{dtype} came back as {ours.dtype}"
    assert dtype != "float32" or ours.dtype == np.float32, f"float32 came back as {ours.dtype}"
    if dtype == "float64":
        np.testing.assert_allclose(ours, before, rtol=U, err_msg="float64 came back")
    else:
        _assert_equal(ours, before, f"{layout} {dtype}")
    _assert_equal(array, before, "the array that was uploaded, which may not change,")


@check("contract-upload-late", as_it_is=True)
def upload_late(backend: Backend, data: Draws) -> None:
    """Arrays that were uploaded for a kernel, or for a step of a plan, may change after the call: nobody reads them."""
    shape = (data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from(ROWS)))
    a, b = _rng(data).standard_normal((2, *shape)).astype(np.float32)
    expected, through_plan = a + b, data.draw(st.booleans(), label="through a plan")
    if through_plan:
        graph = Graph()
        graph.outputs = [ops.add(graph.leaf("a", ("T", shape[1])), graph.leaf("b", ("T", shape[1])))]
        (result,) = backend.compile(graph, {})({"a": a, "b": b})
    else:
        add = backend.kernel_of(ops.add) or backend.on_host(ops.add)
        result = add(backend.upload(a), backend.upload(b))
    a[:] = b[:] = np.nan
    _assert_equal(backend.download(result), expected, "a sum, after the arrays that were added have changed,")


@check("contract-allocate", as_it_is=True)
def allocate(backend: Backend, data: Draws) -> None:
    """A new buffer holds zeros, also where another one with other content was before; nbytes is its size."""
    shape, dtype = _cache_shape(data), data.draw(st.sampled_from(backend.kv_dtypes), label="dtype")
    for _ in range(3):
        buffer = backend.allocate(shape, np.dtype(dtype))
        ours = np.array(backend.download(buffer))
        assert ours.dtype == dtype, f"a buffer of {dtype} holds {ours.dtype}"
        _assert_equal(ours, np.zeros(shape, dtype), "a new buffer")
        assert tuple(buffer.shape) == shape, f"a new buffer has the shape {buffer.shape}, expected {shape}"
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert backend.nbytes(buffer) == expected, f"nbytes of {dtype}{list(shape)} is {backend.nbytes(buffer)}, not {expected}"
        backend.overwrite(buffer, poisoned(shape, dtype, 0))
        del buffer


@check("contract-overwrite", as_it_is=True)
def overwrite(backend: Backend, data: Draws) -> None:
    """overwrite(buffer, array) changes the first len(array) rows and no other; the array may lie in memory in any way."""
    shape, dtype = _cache_shape(data), data.draw(st.sampled_from(backend.kv_dtypes), label="dtype")
    rng, layout = _rng(data), data.draw(st.sampled_from(LAYOUTS), label="layout")
    expected, buffer = np.zeros(shape, dtype), backend.allocate(shape, np.dtype(dtype))
    for _ in range(2):
        rows = int(rng.integers(1, shape[0] + 1))
        array = laid_out(rng.standard_normal((rows, *shape[1:])).astype(dtype), layout)
        expected[:rows] = array
        backend.overwrite(buffer, array)
        if layout != "read-only":
            array[:] = 0  # it has been copied
        _assert_equal(np.array(backend.download(buffer)), expected, f"a buffer with {rows} rows overwritten")


@check("contract-enlarge", as_it_is=True)
def enlarge(backend: Backend, data: Draws) -> None:
    """A larger cache begins with the rows of the old one, and ends with zeros; the old one stays as it was."""
    shape, dtype = _cache_shape(data), data.draw(st.sampled_from(backend.kv_dtypes), label="dtype")
    more = data.draw(st.sampled_from(ROWS), label="more rows")
    old = _rng(data).standard_normal(shape).astype(dtype)
    buffer = backend.allocate(shape, np.dtype(dtype))
    backend.overwrite(buffer, old)
    larger = backend.enlarge(buffer, shape[0] + more)
    ours = np.array(backend.download(larger))
    assert ours.dtype == dtype, f"an enlarged cache of {dtype} holds {ours.dtype}"
    _assert_equal(ours, np.concatenate([old, np.zeros((more, *shape[1:]), dtype)]), "an enlarged cache")
    backend.overwrite(larger, np.ones((1, *shape[1:]), dtype))
    _assert_equal(np.array(backend.download(buffer)), old, "the cache that was enlarged, and is still in use,")


@check("contract-resident", as_it_is=True)
def resident(backend: Backend, data: Draws) -> None:
    """A tensor is brought to the backend once, in every format; multiplied by ones at one place it shows each weight.

    As a constant of floats it comes back as it is in float32. Its bytes, which may be a mapped file, are never written.
    """
    kind, rng = FORMATS[data.draw(st.sampled_from(list(FORMATS)), label="format")], _rng(data)
    scales = data.draw(st.sampled_from(SCALES), label="scales")
    n = data.draw(st.sampled_from((1, 2, 3))) * (kind.block_size if kind.block_size > 1 else 11)
    tensor = weight(rng, "w", (data.draw(st.sampled_from((1, 2, 3, 17, 33)), label="rows"), n), kind.name, scales)
    stored = laid_out(tensor.data[:], "read-only")
    tensor = Tensor(tensor.name, tensor.shape, kind, stored)
    values, before = tensor.dequantize(), stored.copy()
    as_weight = backend.resident(tensor, "weight")
    assert backend.resident(tensor, "weight") is as_weight, "a tensor is brought to the backend twice"
    assert backend.resident_bytes(tensor, "weight") > 0, "resident_bytes of a weight is 0"
    if (matmul := backend.kernel_of(ops.matmul)) is not None:
        columns = np.sort(rng.choice(n, min(n, 40), replace=False))
        ones = np.zeros((len(columns), n), np.float32)
        ones[np.arange(len(columns)), columns] = 1
        ours = np.array(backend.download(matmul(backend.upload(ones), as_weight)))
        size = np.abs(values).max(initial=1e-30)
        # sums of one number and zeros, but d * sum(q x) + m * sum(x) is rounded a few times more
        np.testing.assert_allclose(ours, values.T[columns], rtol=0, atol=8 * U * size, err_msg=f"weights in {kind.name}")
    constant = weight(rng, "c", (n,), kind.name, scales)
    ours = np.array(backend.download(backend.resident(constant, "float")))
    assert ours.dtype == np.float32, f"a constant in {kind.name} is {ours.dtype} on the backend, expected float32"
    _assert_equal(ours, constant.dequantize(), f"a constant in {kind.name}")
    _assert_equal(stored, before, "the tensor's bytes")


@check("contract-results-stay", as_it_is=True)
def results_stay(backend: Backend, data: Draws) -> None:
    """What a kernel gave stays as it is when the kernel is called again: no two calls share their memory."""
    names = [name for name, op in OPS.items() if backend.kernel_of(op) and not op.views and op.inputs[0].dtype == "float"]
    if not names:
        return
    op = OPS[data.draw(st.sampled_from(names), label="op")]
    kernel = backend.kernel_of(op)
    first = data.draw(cases(op, dtypes(op)[0], path="kernel"), label="case")
    assert kernel is not None
    results = []
    for seed in (first.seed, first.seed + 1):
        case = type(first)(**{**vars(first), "seed": seed})
        buffers = [
            backend.resident(x, o.dtype) if isinstance(x, Tensor) else backend.upload(x)
            for o, x in zip(op.inputs, case.operands(), strict=True)
        ]
        with np.errstate(all="ignore"):
            results.append(op.results(kernel(*buffers, **case.attrs)))
        if len(results) == 1:
            shown = [np.array(backend.download(result)) for result in results[0]]
    for result, was in zip(results[0], shown, strict=True):
        _assert_equal(np.array(backend.download(result)), was, f"{op.name}'s first result, after a second call,")


@check("contract-two-plans", as_it_is=True)
def two_plans(backend: Backend, data: Draws) -> None:
    """Two plans of one graph, their steps in turn, keep out of each other's way: two contexts of one model, with a cache each.

    A result used twice, and a value that is both an output and an operand, are right.
    """
    rng, n = _rng(data), data.draw(st.sampled_from((1, 3, 32, 65)), label="n")
    w = float_tensor("w", rng.standard_normal((n, n)).astype(np.float32))
    places = 12
    graph = Graph()
    x, positions = graph.leaf("x", ("T", n)), graph.leaf("positions", ("T",), "int")
    y = ops.matmul(x, graph.leaf("w", (n, n), "weight"))
    z = ops.add(y, y)
    seen = ops.kv_write(graph.leaf("cache", ("C", 1, n)), ops.split_heads(z, h=1), positions)
    q = ops.split_heads(ops.mul(z, y), h=1)
    kq = ops.causal_mask(ops.attention_scores(q, seen), positions, scale=0.0)  # all that is seen weighs the same
    graph.outputs = [y, ops.merge_heads(ops.attention_mix(ops.softmax(kq), seen)), z]
    caches = [backend.allocate((places, 1, n), np.float32) for _ in range(2)]
    plans = [backend.compile(graph, {"w": w, "cache": cache}) for cache in caches]
    truths = [np.zeros((places, n)) for _ in plans]
    at = [0, 0]
    for turn in data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3)), min_size=2, max_size=6), label="turns"):
        which, n_tokens = turn
        if at[which] + n_tokens > places:
            continue
        rows = at[which] + np.arange(n_tokens)
        x_now = rng.standard_normal((n_tokens, n)).astype(np.float32)
        y_now = x_now.astype(np.float64) @ w.dequantize().astype(np.float64).T
        truths[which][rows] = 2 * y_now
        mean = np.stack([truths[which][: row + 1].mean(axis=0) for row in rows])
        results = [np.array(backend.download(r)) for r in plans[which]({"x": x_now, "positions": rows})]
        at[which] += n_tokens
        for ours, truth, told in zip(results, (y_now, mean, 2 * y_now), ("y", "mean", "z"), strict=True):
            size = max(np.abs(truths[which]).max(), 1e-30)
            assert ours.shape == truth.shape, f"{told} has the shape {ours.shape}"
            # a product of up to 65 terms, a mean of up to 12
            np.testing.assert_allclose(ours, truth, rtol=0, atol=100 * U * size * n**0.5, err_msg=f"{told} of plan {which}")


@check("contract-told", as_it_is=True)
def told(backend: Backend, data: Draws) -> None:
    """A backend has a name and one line about itself; devices and memory are numbers that make sense."""
    assert isinstance(backend.name, str), "name is no text"
    assert backend.name, "it has no name"
    line = backend.describe()
    assert isinstance(line, str), "describe() gives no text"
    assert line, "describe() gives nothing"
    assert "\n" not in line, "describe() gives more than one line"
    assert all(isinstance(device, Device) for device in type(backend).devices()), "devices() gives something else than Devices"
    free, used = backend.memory_free(), backend.memory_used()
    assert free is None or free >= 0, f"memory_free() is {free}"
    assert used >= 0, f"memory_used() is {used}"
    coverage = backend.coverage(Graph())
    assert not coverage.kernel + coverage.decomposed + coverage.on_host, "an empty graph has nodes"
