"""numpy's kernels against the float64 formulas, and the contract's defaults."""

from __future__ import annotations

import math
from threading import Lock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ops
from backends import Backend, Options, get_backend, kernel, known_backends
from backends.array_api import Strict
from backends.numpy import Numpy
from ops.errors import BackendError
from ops.graph import Graph
from ops.op import OPS, Op
from ops.tensor import MadeRows, Tensor

NUMPY = Numpy()

SIZES = {
    "T": st.sampled_from([1, 2, 3, 64, 65, 130]),  # around the block of queries that attention takes at once
    "n": st.sampled_from([1, 2, 31, 64]),
    "m": st.integers(1, 9),
    "U": st.integers(1, 4),
    "V": st.just(11),
    "k": st.sampled_from([1, 2, 3]),
    "d": st.sampled_from([2, 6, 64]),
    "e": st.sampled_from([1, 8]),
    "r": st.just(1),
}
ATTRS = {
    "rmsnorm": {"eps": 1e-5},
    "layernorm": {"eps": 1e-5},
    "causal_mask": {"scale": 0.3},
    "attention": {"scale": 0.3},
    "split_heads": {"h": 1},
}


@st.composite
def cases(draw: st.DrawFn, op: Op) -> list[np.ndarray]:
    """Operands of an op in float64, of the sizes that its signature allows."""
    size = {letter: draw(strategy) for letter, strategy in SIZES.items()}
    size["h"] = size["k"] * draw(st.sampled_from([1, 2, 4]))
    past = draw(st.sampled_from([0, 1, 7, 40]))
    size["S"], size["C"] = past + size["T"], past + size["T"] + draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    integers = {
        "positions": np.arange(past, past + size["T"]),
        "tokens": rng.integers(0, size["V"], size["T"]),
        "ids": rng.integers(0, size["T"], size["U"]),
    }
    return [integers[o.name] if o.dtype == "int" else rng.standard_normal([size[d] for d in o.dims]) * scale for o in op.inputs]


def _centred(x, weight, bias, *, eps):
    """layernorm without signs: x and the mean that is taken from it are rounded each, and may cancel to almost nothing."""
    size = np.abs(x)
    spread = np.sqrt(x.var(axis=1, keepdims=True) + eps)
    return (size + size.mean(axis=1, keepdims=True)) / spread * np.abs(weight) + np.abs(bias)


@pytest.mark.parametrize("name", sorted(name for name, op in OPS.items() if NUMPY.kernel_of(op) and op is not ops.top_k))
def test_kernel_agrees_with_the_float64_formula(name):
    op, attrs = OPS[name], ATTRS.get(name, {})

    @settings(max_examples=60, deadline=None)
    @given(cases(op))
    def check(arrays):
        # both sides start from the same numbers: float32's
        single = [a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays]
        double = [a.astype(np.float64) if a.dtype == np.float32 else a.copy() for a in single]
        before = [a.copy() for a in single]
        operands = [tensor(a) if o.dtype == "weight" else a for o, a in zip(op.inputs, single, strict=True)]
        truth, ours = op.formula(*double, **attrs), NUMPY.kernel_of(op)(*operands, **attrs)
        assert ours.dtype == np.float32
        assert ours.shape == truth.shape
        for operand, array, was in zip(op.inputs, single, before, strict=True):
            assert operand.written or np.array_equal(array, was), f"{operand.name} was changed"
        finite = np.isfinite(truth)
        np.testing.assert_array_equal(finite, np.isfinite(ours))
        error = np.square(ours[finite] - truth[finite]).sum()
        # float32 rounds by 2^-24 at most; scores of up to 30*30*64*0.3 are exponents of exp, which then is off by that many
        # roundings: (2^-24 * 17280)^2 = 1e-6 at the very worst; products alone stay below (2^-24)^2 * some 100
        limit = 1e-6 if name in ("softmax", "attention") else 1e-12
        # a sum of products may cancel to almost nothing: its rounding is measured by the sum without the signs
        unsigned = _centred(*double, **attrs) if name == "layernorm" else op.formula(*(np.abs(a) for a in double), **attrs)
        size = max(np.square(x[finite]).sum() for x in (truth, unsigned))
        assert error <= limit * max(size, 1e-30)

    check()


def tensor(values: np.ndarray, name: str = "w") -> Tensor:
    stored = np.ascontiguousarray(values, np.float32)
    return Tensor(name, values.shape, ops.FORMATS["F32"], stored.view(np.uint8))


@pytest.mark.parametrize("budget", [None, 0, 40 * 24 * 4])
def test_products_are_the_same_within_any_budget(budget):
    rng = np.random.default_rng(0)
    backend = Numpy(Options(weights_memory=budget))
    weights = [tensor(rng.standard_normal((40, 24))) for _ in range(3)]
    x = rng.standard_normal((5, 24)).astype(np.float32)
    for w in weights:
        for _ in range(2):
            # one sum of 24 products: 24 roundings of 2^-24, relative to numbers of about 5
            np.testing.assert_allclose(backend.matmul(x, w), x @ w.dequantize().T, atol=1e-5)
    assert backend.weights.kept == {None: 3, 0: 0}.get(budget, 1) * 40 * 24 * 4


@pytest.mark.parametrize("budget", [None, 0])
def test_rows_that_are_made_when_they_are_asked_for(budget, monkeypatch):
    """A weight whose rows lie in another order in the file: kept as float32, and made anew a few rows at a time."""
    monkeypatch.setattr("backends.numpy.weights.CHUNK", 7 * 24)
    rng = np.random.default_rng(0)
    stored, order = tensor(rng.standard_normal((40, 24))), rng.permutation(40)
    most = []

    def make(rows):
        made = stored.data[order[rows]]
        most.append(len(made))
        return made

    w = Tensor("w", stored.shape, stored.format, MadeRows(stored.data.shape, make))
    right, x, tokens = stored.dequantize()[order], rng.standard_normal((5, 24)).astype(np.float32), np.array([39, 0, 39])
    for backend in (Numpy(Options(weights_memory=budget)), Backend(), Strict()):
        matmul, embedding = (backend.kernel_of(op) or backend.on_host(op) for op in (ops.matmul, ops.embedding))
        weight, most[:] = backend.resident(w, "weight"), []
        for _ in range(2):
            y = backend.download(matmul(backend.upload(x), weight))
            np.testing.assert_allclose(y, x @ right.T, atol=1e-5)  # one sum of 24 products, as above
        np.testing.assert_array_equal(backend.download(embedding(backend.upload(tokens), weight)), right[tokens])
        if isinstance(backend, Numpy):
            assert max(most) <= 7  # never the whole weight in its quantised form
            assert len(most) == (6 if budget is None else 2 * 6) + 1


@pytest.mark.parametrize("backend", [Numpy(), Strict()], ids=lambda backend: backend.name)
def test_gelu_is_right_in_the_tail_too(backend):
    """Relative to itself, where 1 + erf(x / sqrt(2)) has lost all digits; also in many parts, and beyond all numbers."""
    x = np.linspace(-12.5, 12.5, 80_001).astype(np.float32)
    y = backend.download(backend.gelu(backend.upload(x[None])))[0]
    right = [v / 2 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]
    # two exponentials of 2 units each, nine steps of a polynomial, which is off by 3e-8 itself
    np.testing.assert_allclose(y, right, rtol=15 * 2.0**-24)
    far = np.array([[-np.inf, -1e38, -16, 16, 1e38, np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(backend.download(backend.gelu(backend.upload(far))), np.maximum(far, 0))


def relu_graph() -> Graph:
    graph = Graph()
    x, w = graph.leaf("x", ("T", 4)), graph.leaf("w", (4, 4), "weight")
    cache, positions = graph.leaf("cache", ("C", 1, 4)), graph.leaf("positions", ("T",), "int")
    h = ops.swiglu(ops.matmul(x, w), x)
    graph.outputs = [ops.merge_heads(ops.kv_write(cache, ops.split_heads(h, h=1), positions))]
    return graph


class Device(Backend):
    """Buffers that are no numpy arrays, and a kernel for one op: what a third party's first day looks like."""

    name = "device"

    class Memory:
        def __init__(self, array):
            self.array, self.shape, self.nbytes = array.copy(), array.shape, array.nbytes

    def allocate(self, shape, dtype):
        return self.Memory(np.zeros(shape, dtype))

    def upload(self, array):
        return self.Memory(array)

    def download(self, buffer):
        return buffer.array.copy()

    def overwrite(self, buffer, array):
        buffer.array[: len(array)] = array

    def weight(self, tensor):
        return self.Memory(tensor.dequantize())

    @kernel(ops.matmul)
    def matmul(self, x, weight):
        return self.Memory(x.array @ weight.array.T)


def test_what_a_backend_lacks_runs_on_the_host_and_is_counted():
    rng = np.random.default_rng(0)
    w, x = tensor(rng.standard_normal((4, 4))), rng.standard_normal((2, 4)).astype(np.float32)
    inputs = {"x": x, "positions": np.array([1, 2])}
    results = []
    for backend in (Backend(), Device(), Numpy()):
        cache = backend.allocate((6, 1, 4), np.float32)
        plan = backend.compile(relu_graph(), {"w": w, "cache": cache})
        (out,) = plan(inputs)
        results.append((backend.download(out), backend.download(cache), backend.coverage(relu_graph()).on_host))
    (truth, cache, _), (device, device_cache, on_host), (fast, _, _) = results
    np.testing.assert_array_equal(device, truth)
    np.testing.assert_array_equal(device_cache, cache)  # written through the host, though no kernel writes it
    np.testing.assert_allclose(fast, truth, rtol=1e-5)  # exp of float32 in two implementations: a few roundings
    assert on_host == {"swiglu": 1, "split_heads": 1, "kv_write": 1, "merge_heads": 1}


def test_enlarge_keeps_the_rows_and_adds_zeros():
    for backend in (Backend(), Device()):
        buffer = backend.allocate((2, 1, 3), np.float32)
        backend.overwrite(buffer, np.ones((1, 1, 3), np.float32))
        larger = backend.download(backend.enlarge(buffer, 4))
        np.testing.assert_array_equal(larger[:, 0], [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_a_backend_may_have_a_lock_of_its_own():
    """Contexts in several threads share it, so it may well; `_lock` is what one would call it."""

    class Locked(Backend):
        def __init__(self) -> None:
            super().__init__()
            self._lock = Lock()

        def upload(self, array):
            assert self._lock.acquire(timeout=5), "held while a tensor is brought to the backend"
            try:
                return array.copy()
            finally:
                self._lock.release()

        def weight(self, tensor):
            return self.resident(tensor, "float")  # one form for both

    backend, w = Locked(), tensor(np.eye(4))
    assert backend.resident(w, "weight") is backend.resident(w, "float")


def test_an_observer_sees_every_node_with_its_operands():
    graph, seen = relu_graph(), []
    backend = Numpy()
    plan = backend.compile(graph, {"w": tensor(np.eye(4)), "cache": backend.allocate((4, 1, 4), np.float32)})
    plan({"x": np.ones((1, 4), np.float32), "positions": np.array([0])}, seen.append)
    assert [e.node.op.name for e in seen] == ["matmul", "swiglu", "split_heads", "kv_write", "merge_heads"]
    assert all(e.seconds > 0 and not e.on_host and len(e.operands) == len(e.node.op.inputs) for e in seen)


def test_rope_is_exact_at_long_positions():
    """In float64 a position of 100,000 times a float32 frequency is exact to 1e-11; in float32 it would be off by 4e-3."""
    x, freqs = np.ones((1, 1, 64), np.float32), np.float32(1e5) ** (-np.arange(32, dtype=np.float32) / 32)
    for position in (8_000, 100_000):
        turn = np.exp(1j * position * freqs.astype(np.float64))
        expected = np.stack([turn.real - turn.imag, turn.real + turn.imag], -1).reshape(1, 1, 64)
        for backend in (Numpy(), Backend()):
            rope = backend.kernel_of(ops.rope) or backend.on_host(ops.rope)
            # cos and sin of one, rounded to float32, and two products of them
            np.testing.assert_allclose(rope(x, np.array([position]), freqs), expected, atol=3e-7)


class Louder(Numpy):
    """A backend on top of numpy's: a kernel of its own where numpy uses the formula, and another one without the mark."""

    @kernel(ops.silu)
    def silu(self, x):
        return 2 * ops.silu.formula(x)

    def rmsnorm(self, x, weight, *, eps):
        return 3 * super().rmsnorm(x, weight, eps=eps)

    @property
    def queue(self):
        return self.made_later


def test_a_subclass_keeps_its_own_kernels():
    backend, x = Louder(), np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(backend.kernel_of(ops.silu)(x), 2 * ops.silu(x))
    plain = Numpy().rmsnorm(x, x[0], eps=1e-5)
    np.testing.assert_array_equal(backend.kernel_of(ops.rmsnorm)(x, x[0], eps=1e-5), 3 * plain)


class Broken(Backend):
    def __init__(self, options=None):
        raise RuntimeError("no device\nwas found")


def test_a_backend_that_cannot_start_is_told_in_a_sentence():
    with pytest.raises(BackendError, match="cannot be used here: RuntimeError: no device was found"):
        get_backend(f"{__name__}:Broken")


def test_backends_are_found_by_name_or_by_module_and_class():
    assert {"numpy", "reference"} <= set(known_backends())
    assert isinstance(get_backend("numpy"), Numpy)
    assert isinstance(get_backend("backends.numpy:Numpy"), Numpy)
    with pytest.raises(BackendError, match=r"unknown backend 'cuda': known are .*numpy.*module:Class"):
        get_backend("cuda")
    with pytest.raises(BackendError, match="no_such_module"):
        get_backend("no_such_module:Thing")
    with pytest.raises(BackendError, match="is not a subclass"):
        get_backend("pathlib:Path")
