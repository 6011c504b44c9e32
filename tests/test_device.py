"""What OpenCL and CUDA share, run on whatever OpenCL device is here: lifetimes, memory, and what goes wrong on a device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ops
from backends import Backend, Options, get_backend
from backends.device import sources
from backends.device.lifetimes import Lifetime, share
from ops.errors import BackendError, ShapeError
from ops.graph import Graph
from ops.tensor import Tensor

cl = pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")

from backends.opencl import OpenCL, devices  # noqa: E402
from tinyllama import Model  # noqa: E402

TINY = Path(__file__).parent / "data" / "tiny" / "llama-q.gguf"


@pytest.fixture
def backend() -> OpenCL:
    return OpenCL()


def tensor(values: np.ndarray) -> Tensor:
    stored = np.ascontiguousarray(values, np.float32)
    return Tensor("w", values.shape, ops.FORMATS["F32"], stored.view(np.uint8))


def small_graph() -> Graph:
    graph = Graph()
    x, w = graph.leaf("x", ("T", 8)), graph.leaf("w", (8, 8), "weight")
    h = ops.silu(ops.matmul(x, w))
    graph.outputs = [ops.add(ops.silu(ops.silu(h)), h)]
    return graph


# Memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells it so")
def test_a_cache_takes_no_memory_before_it_is_written(backend):
    if not backend.runtime.shares_memory:
        pytest.skip("this device has memory of its own")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident()
    cache = backend.allocate((1 << 26,), np.float32)  # 256 MiB
    assert backend.memory_used() == 1 << 28
    assert resident() - before < 1 << 25
    assert not backend.download(cache).any()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells on which processors one may run")
@pytest.mark.parametrize(
    ("usable", "n_threads", "apart"),
    [({0, 1}, None, True), ({0, 1}, 2, True), ({0, 1}, 5, True), ({0, 1}, 1, False), ({1}, None, False), ({1}, 1, False)],
)
def test_threads_have_processors_of_their_own_if_they_have_all(usable, n_threads, apart, monkeypatch):
    """Fewer threads than processors are free to go where nobody else computes."""
    monkeypatch.delenv("POCL_AFFINITY", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable)
    devices.keep_threads_apart(n_threads)
    assert (os.environ.get("POCL_AFFINITY") == "1") == apart
    monkeypatch.setenv("POCL_AFFINITY", "0")
    devices.keep_threads_apart(n_threads)
    assert os.environ["POCL_AFFINITY"] == "0"  # what the user says


# Buffers by lifetime


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    made = sorted(draw(st.lists(st.integers(0, 20), max_size=30)))
    return [Lifetime(draw(st.integers(1, 1000)), m, m + draw(st.integers(0, 8))) for m in made]


@given(lifetimes())
def test_no_two_values_that_live_at_once_share_a_buffer(values):
    shared = share(values)
    for i, a in enumerate(values):
        assert shared.sizes[shared.buffer_of[i]] >= a.nbytes
        for j, b in enumerate(values[:i]):
            apart = a.made > b.last_use or b.made > a.last_use
            assert apart or shared.buffer_of[i] != shared.buffer_of[j]


def test_a_long_chain_needs_two_buffers():
    """Each node reads the value before it and makes the next: one buffer is read while the other is written."""
    assert share([Lifetime(100, i, i + 1) for i in range(50)]).sizes == (100, 100)


# A plan


def test_a_plan_serves_steps_of_any_length_in_any_order(backend):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 8)).astype(np.float32)
    plan = backend.compile(small_graph(), {"w": tensor(w)}, {"T": 4})
    silu = ops.silu.formula
    for n_tokens in (1, 4, 1, 3, 9, 1, 2, 9):  # 9 is more than was announced
        x = rng.standard_normal((n_tokens, 8)).astype(np.float32)
        h = silu(x.astype(np.float64) @ w.T)
        # products of 8 terms and a few exponentials in float32, of numbers around 1: some roundings of 2^-24
        np.testing.assert_allclose(backend.download(plan({"x": x})[0]), silu(silu(h)) + h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("made", [OpenCL, Backend], ids=["device", "loop"])
def test_a_step_with_other_inputs_than_the_graphs_is_refused(made):
    """In a sentence: else what lies in the buffers since the last step would be taken for it."""
    graph, x = Graph(), np.ones((3, 4), np.float32)
    graph.outputs = [ops.add(graph.leaf("a", ("T", 4)), graph.leaf("b", ("T", 4)))]
    backend = made()
    plan = backend.compile(graph, {})
    for inputs, told in (
        ({"a": x}, "takes a, b, and was given a$"),
        ({"a": x, "b": x, "c": x}, "takes a, b, and was given a, b, c$"),
        ({"a": x, "b": x[:2]}, r"b has the shape \[2, 4\], expected \[3, 4\]"),
        ({"a": x[:, :3], "b": x}, r"a has the shape \[3, 3\], expected \[T, 4\]"),
    ):
        with pytest.raises(ShapeError, match=told):
            plan(inputs)
    np.testing.assert_array_equal(backend.download(plan({"a": x, "b": x})[0]), 2 * x)


def test_a_position_beyond_the_cache_is_refused(backend):
    """numpy would say so by itself; a kernel would write to memory that belongs to others."""
    graph = Graph()
    seen = ops.kv_write(graph.leaf("cache", ("C", 1, 8)), graph.leaf("x", ("T", 1, 8)), graph.leaf("positions", ("T",), "int"))
    graph.outputs = [ops.attention_mix(graph.leaf("p", (1, "T", "S")), seen)]
    plan = backend.compile(graph, {"cache": backend.allocate((4, 1, 8), np.float32)})
    with pytest.raises(ShapeError, match="a token at position 4, but the cache has 4 places"):
        plan({"x": np.ones((1, 1, 8), np.float32), "positions": np.array([4]), "p": np.ones((1, 1, 5), np.float32)})


def test_scratch_is_told_before_it_is_taken(backend):
    graph, sizes = small_graph(), {"T": 64, "U": 1}
    before, w = backend.memory_used(), tensor(np.eye(8))
    plan = backend.compile(graph, {"w": w}, sizes)
    plan({"x": np.ones((64, 8), np.float32)})
    assert backend.memory_used() - before == backend.scratch_bytes(graph, sizes) + backend.resident_bytes(w, "weight")
    del plan
    assert backend.memory_used() - before == backend.resident_bytes(w, "weight")


def test_a_plan_counts_its_launches(backend):
    plan = backend.compile(small_graph(), {"w": tensor(np.eye(8))})
    plan({"x": np.ones((1, 8), np.float32)})
    (n, seconds), n_nodes = backend.launched(), len(small_graph().nodes)
    plan({"x": np.ones((1, 8), np.float32)})
    assert backend.launched()[0] - n == n_nodes
    assert backend.launched()[1] > seconds


# Weights


def test_weights_lie_where_the_file_is_mapped(backend):
    """Where the device shares the host's memory, the buffer is the array itself: what changes there is seen by the kernel."""
    if not backend.runtime.shares_memory:
        pytest.skip("this device has memory of its own")
    w = np.eye(8, dtype=np.float32)
    weight = backend.weight(Tensor("w", w.shape, ops.FORMATS["F32"], w.view(np.uint8)))
    x = backend.upload(np.ones((1, 8), np.float32))
    w[0] = 5
    np.testing.assert_array_equal(backend.download(backend.kernel_of(ops.matmul)(x, weight))[0], [40, 1, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("rows_a_buffer", [1, 3, 8, 100])
def test_a_weight_larger_than_a_buffer_may_be_lies_in_several(backend, rows_a_buffer):
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((8, 64)).astype(np.float32), rng.standard_normal((5, 64)).astype(np.float32)
    limits = backend.runtime.limits
    backend.runtime.limits = replace(limits, allocation=rows_a_buffer * 64 * 4)
    weight = backend.weight(tensor(w))
    backend.runtime.limits = limits
    assert len(weight.parts) == -(-8 // rows_a_buffer)
    y = backend.download(backend.kernel_of(ops.matmul)(backend.upload(x), weight))
    np.testing.assert_allclose(y, x.astype(np.float64) @ w.T, atol=1e-5)  # sums of 64 products around 1, in float32
    tokens = np.array([7, 0, 3, 3])
    np.testing.assert_array_equal(backend.download(backend.kernel_of(ops.embedding)(backend.upload(tokens), weight)), w[tokens])


def test_a_row_larger_than_any_buffer_is_told(backend):
    backend.runtime.limits = replace(backend.runtime.limits, allocation=100)
    with pytest.raises(BackendError, match=r"a row of w takes 256 bytes, but the largest buffer of .* has 100"):
        backend.weight(tensor(np.ones((2, 64))))


# What goes wrong


def test_a_device_that_is_full_is_told(backend):
    small = OpenCL(Options(device_memory=10_000))
    kept = small.allocate((1000,), np.float32)
    with pytest.raises(BackendError, match=r"out of memory on .*0\.1 MiB more are needed.*-ngl.*-c"):
        small.allocate((20_000,), np.float32)
    assert small.memory_free() == 6_000
    del kept
    assert small.memory_free() == 10_000


def test_a_driver_that_is_out_of_memory_is_told(backend, monkeypatch):
    def fail(*args, **kwargs):
        raise cl.MemoryError(cl._cl._ErrorRecord("clCreateBuffer", cl.status_code.MEM_OBJECT_ALLOCATION_FAILURE, ""))

    monkeypatch.setattr(cl, "Buffer", fail)
    with pytest.raises(BackendError, match="out of memory on"):
        backend.allocate((10,), np.float32)
    assert backend.memory_used() == 0


def test_a_lost_device_is_told(backend, monkeypatch):
    plan = backend.compile(small_graph(), {"w": tensor(np.eye(8))})
    plan({"x": np.ones((1, 8), np.float32)})

    def fail(*args, **kwargs):
        raise cl.RuntimeError(cl._cl._ErrorRecord("clEnqueueNDRangeKernel", cl.status_code.DEVICE_NOT_AVAILABLE, ""))

    with monkeypatch.context() as patch:
        patch.setattr(cl, "enqueue_nd_range_kernel", fail)
        with pytest.raises(BackendError, match=r"was lost \(.*DEVICE_NOT_AVAILABLE.*\): load the model anew"):
            plan({"x": np.ones((1, 8), np.float32)})
    plan({"x": np.ones((1, 8), np.float32)})


def test_a_kernel_that_does_not_compile_is_told(tmp_path, monkeypatch):
    shutil.copytree(sources.KERNELS, tmp_path / "kernels")
    broken = tmp_path / "kernels" / "rows.c"
    broken.write_text(broken.read_text("utf-8") + "\nKERNEL void more(GLOBAL float* x) { x[0] = undeclared; }\n", "utf-8")
    monkeypatch.setattr(sources, "KERNELS", tmp_path / "kernels")
    sources._text.cache_clear()
    backend = OpenCL()
    try:
        x = backend.upload(np.ones((2, 2), np.float32))
        with pytest.raises(BackendError, match=r"get_rows \(rows\.c\) does not compile on .*undeclared.*--device") as told:
            backend.kernel_of(ops.get_rows)(x, backend.upload(np.array([0])))
        assert "\n" not in str(told.value)
    finally:
        sources._text.cache_clear()


def test_a_device_without_enough_local_memory_is_told():
    backend = OpenCL(Options(device_features="gpu"))
    backend.runtime.limits = replace(backend.runtime.limits, local_memory=64)
    x = backend.upload(np.ones((1, 64), np.float32))
    with pytest.raises(BackendError, match=r"has 64 bytes of local memory .* but kernel rmsnorm needs 512 .*--device"):
        backend.kernel_of(ops.rmsnorm)(x, x.seen_as((64,)), eps=1e-5)


def test_a_device_with_small_groups_gets_smaller_ones():
    backend = OpenCL(Options(device_features="gpu"))
    backend.runtime.limits = replace(backend.runtime.limits, group_size=24)
    x = np.linspace(-1, 1, 3 * 50, dtype=np.float32).reshape(3, 50)
    y = backend.download(backend.kernel_of(ops.rmsnorm)(backend.upload(x), backend.upload(x[0]), eps=1e-5))
    np.testing.assert_allclose(y, ops.rmsnorm(x.astype(np.float64), x[0], eps=1e-5), rtol=1e-5)  # sums of 50 squares


def test_a_device_is_chosen_by_number_name_or_environment(monkeypatch):
    name = OpenCL.devices()[0].name
    assert OpenCL(Options(device="0")).runtime.limits.name == name
    assert OpenCL(Options(device=name[:8].upper())).runtime.limits.name == name
    monkeypatch.setenv("PYOPENCL_CTX", "0")
    OpenCL()
    for wrong in ("99", "no such device", ""):
        with pytest.raises(BackendError, match=rf"no OpenCL device '{wrong}': there are 0: "):
            OpenCL(Options(device=wrong))
    monkeypatch.setenv("PYOPENCL_CTX", "nonsense")
    with pytest.raises(BackendError, match="PYOPENCL_CTX='nonsense' names no device that is here"):
        OpenCL()


def test_threads_of_a_cpu_may_be_fewer():
    backend = OpenCL(Options(n_threads=1))
    x = np.ones((1, 8), np.float32)
    np.testing.assert_array_equal(backend.download(backend.kernel_of(ops.add)(backend.upload(x), backend.upload(x))), 2 * x)


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "del backend, x, weight, y; gc.collect(); raise SystemExit(3)"])
def test_python_may_end_and_a_backend_may_go_while_its_kernels_run(end):
    """Memory that a kernel of PoCL still reads must stay: without it the process dies of a signal."""
    code = f"""
import gc
import numpy as np
import ops
from backends.opencl import OpenCL
from ops.tensor import Tensor
backend = OpenCL()
stored = np.ones((2048, 2048), np.float32).view(np.uint8)
weight = backend.weight(Tensor("w", (2048, 2048), ops.FORMATS["F32"], stored))
del stored
x = backend.upload(np.ones((512, 2048), np.float32))
y = backend.kernel_of(ops.matmul)(x, weight)  # some tenths of a second
{end}
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 3


def test_unknown_features_are_told():
    with pytest.raises(BackendError, match="--device-features vax: opencl has kernels for avx512vnni, avx2, portable, cpu"):
        get_backend("opencl", Options(device_features="vax"))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("fuse", [True, False])
def test_warming_up_compiles_and_changes_nothing(kind, fuse):
    """Kernels are tried on garbage, but they must find their way, and leave caches in use alone."""
    model = Model.load(TINY, backend=OpenCL(Options(device_features=kind, fuse=fuse)), type_k="f32", type_v="f32")
    tokens, fresh = model.tokenize("the hand of the king"), model.context(n_ctx=64)
    fresh.warm_up()
    used = model.context(n_ctx=64)
    first = used.eval(tokens, "all")
    told = []
    used.warm_up(lambda items, what: [*(told.append((what, len(items))) or items)])
    np.testing.assert_array_equal(used.eval([5]), _after(fresh, tokens, [5]))
    used.rewind(0)
    np.testing.assert_array_equal(used.eval(tokens, "all"), first)
    assert ("compiling kernels", 0) in told  # the other context has done it


def _after(context, tokens, more):
    context.eval(tokens)
    return context.eval(more)


def test_memory_is_counted_right_by_many_threads(backend):
    """Each allocates, frees and waits; the last to look finds nothing left, and none stumbled over what another gave back."""

    def work(_):
        for size in range(1, 200):
            backend.allocate((size,), np.float32)
            if size % 3 == 0:
                backend.synchronize()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))  # raises what a thread raised
    assert backend.memory_used() == 0


def test_running_out_of_memory_in_mid_generation_is_told_and_survived():
    """A step with the logits of all tokens needs more than was planned for: it fails, and the context is as it was before."""

    def loaded(memory):
        backend = OpenCL(Options(device_memory=memory))
        context = Model.load(TINY, backend=backend, type_k="f32", type_v="f32").context(n_ctx=128, n_batch=64)
        context.eval(tokens)
        return backend, context

    tokens = range(3, 40)
    roomy, reference = loaded(None)
    backend, context = loaded(roomy.memory_used())
    with pytest.raises(BackendError, match=r"out of memory on .* more are needed .*-ngl.*-c.*-b"):
        context.eval(range(3, 63), "all")
    assert context.n_past == len(tokens)
    np.testing.assert_array_equal(context.eval([5]), reference.eval([5]))  # one device, one program: the same bits
    assert backend.memory_used() <= roomy.memory_used()
