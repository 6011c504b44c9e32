"""Products on devices: every block format, in the kernels for a CPU and those for a GPU, against the float64 formula.

Both kinds run on whatever OpenCL device is here.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import ops
from backends import Options
from backends.device.array import DeviceArray, DeviceWeight, Part
from backends.device.launch import TABLE
from backends.device.runtime import Limits
from ops.tensor import MadeRows, Tensor

pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")

from backends.opencl import OpenCL

# Where the float16 numbers of a block are, and the float32 ones: random bytes would make some of them infinite.
HALVES = {
    **{"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0]},
    **{"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]},
}
SINGLES = {"Q4_0_F32": [0], "Q4_1_F32": [0, 4], "Q8_0_F32": [0]}
# float32 rounds by 2^-24, and some products of n cancel: an NMSE of 1e-14 to 2e-13 for these n. A scale or a bit in the wrong
# place, or one weight that is missing, is 1e-6 and more.
NMSE = 1e-12


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def backend(request: pytest.FixtureRequest) -> OpenCL:
    return OpenCL(Options(device_features=request.param))


def blocks(name: str, m: int, n: int, seed: int = 0) -> Tensor:
    """Random bits, with scales of both signs, from the smallest float16 to about 1."""
    rng = np.random.default_rng(seed)
    f = ops.FORMATS[name]
    if f.block_size == 1:
        values = rng.standard_normal((m, n)).astype(np.float32)
        stored = {"F32": values, "F16": values.astype("f2"), "BF16": (values.view("u4") >> 16).astype("u2")}[name]
        return Tensor("w", (m, n), f, stored.view(np.uint8))
    data = rng.integers(0, 256, (m, n // f.block_size, f.block_bytes), np.uint8)
    for at in HALVES.get(name) or SINGLES[name]:
        scales = rng.choice([-1, 1], data.shape[:2]) * 2.0 ** rng.uniform(-24, 0, data.shape[:2])
        stored = scales.astype(np.float16 if name in HALVES else np.float32)
        data[:, :, at : at + stored.itemsize] = stored[:, :, None].view(np.uint8)
    return Tensor("w", (m, n), f, data.reshape(m, -1))


def check_product(backend: OpenCL, weight: Tensor, n_tokens: int, there: DeviceWeight | None = None) -> None:
    x = np.random.default_rng(n_tokens).standard_normal((n_tokens, weight.shape[1])).astype(np.float32)
    right = ops.matmul.formula(x.astype(np.float64), weight)
    product = backend.kernel_of(ops.matmul)(backend.upload(x), there or backend.weight(weight))
    error = backend.download(product) - right
    assert np.sum(error**2) < NMSE * np.sum(right**2), (weight.format, weight.shape, n_tokens)


@pytest.mark.parametrize("name", list(ops.FORMATS))
def test_products_of_any_format_and_size(backend, name):
    size = ops.FORMATS[name].block_size
    # tokens, rows, columns: single ones, tails of all that kernels take at a time, and more than one tile or panel
    shapes = [(1, 1, size), (1, 131, 3 * size), (3, 7, 5 * size), (5, 5, 3 * size), (13, 67, 3 * size), (70, 17, size)]
    if size == 1:
        shapes += [(1, 3, 15), (2, 5, 601), (6, 3, 15), (33, 18, 601), (300, 3, 17)]
    for n_tokens, m, n in shapes:
        check_product(backend, blocks(name, m, n), n_tokens)


@pytest.mark.parametrize("name", ["F16", "Q4_1", "Q6_K"])
def test_long_rows(backend, name):
    """Long enough for a single running sum to lose more than NMSE allows: it loses n / 6 * 2^-48 on average, 5e-12."""
    check_product(backend, blocks(name, 31, 8192), 1)
    check_product(backend, blocks(name, 31, 8192), 5)


@pytest.mark.parametrize("n_tokens", [2, 9])
def test_a_weight_in_several_buffers(backend, n_tokens):
    weight = blocks("Q4_0", 23, 96)
    tokens = np.array([22, 0, 4, 5, 11, 22])
    asked = backend.runtime.limits
    backend.runtime.limits = replace(asked, allocation=5 * 3 * 18)  # five rows
    try:
        parts = backend.weight(weight)
    finally:
        backend.runtime.limits = asked
    check_product(backend, weight, n_tokens, parts)
    assert [p.n_rows for p in parts.parts] == [5, 5, 5, 5, 3]
    rows = backend.kernel_of(ops.embedding)(backend.upload(tokens), parts)
    np.testing.assert_array_equal(backend.download(rows), weight.dequantize()[tokens])


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def floats(request: pytest.FixtureRequest) -> OpenCL:
    """Weights in buffers of 16 KB at most, so that most are in several."""
    backend = OpenCL(Options(device_features=request.param, precise=True))
    backend.runtime.limits = replace(backend.runtime.limits, allocation=16 << 10)
    return backend


@pytest.mark.parametrize("n_tokens", [1, 3, 9])  # the last are many: each product by itself there
def test_fused_products(floats, n_tokens):
    """Formats that are alike in one launch and others, what follows them, and rows that leave places empty."""
    n, rng = 256, np.random.default_rng(n_tokens)
    x, norm = rng.standard_normal((n_tokens, n)).astype(np.float32), rng.uniform(0.5, 1.5, n).astype(np.float32)
    normed = ops.rmsnorm.formula(x.astype(np.float64), norm, eps=1e-5)

    def apply(op, operands, **attrs):
        there = [floats.weight(a) if isinstance(a, Tensor) else floats.upload(a) for a in operands]
        results = floats.kernel_of(op)(*there, **attrs)
        return [floats.download(r) for r in (results if isinstance(results, tuple) else (results,))]

    def check(results, right):
        for ours, expected in zip(results, right, strict=True):
            assert np.sum((ours - expected) ** 2) < NMSE * np.sum(expected**2)

    for names in (("Q4_0", "Q4_0", "Q4_0"), ("Q4_K", "Q4_K", "Q6_K"), ("F16", "Q8_0", "F16")):
        three = [blocks(name, m, n, seed) for seed, (name, m) in enumerate(zip(names, (70, 130, 7), strict=True))]
        check(apply(ops.qkv, [x, *three]), [ops.matmul.formula(x.astype(np.float64), w) for w in three])
        check(apply(ops.norm_qkv, [x, norm, *three], eps=1e-5), [ops.matmul.formula(normed, w) for w in three])
        residual = rng.standard_normal((n_tokens, 130)).astype(np.float32)
        check(apply(ops.matmul_add, [x, three[1], residual]), [residual + ops.matmul.formula(x.astype(np.float64), three[1])])
    for names in (("Q4_0", "Q4_0"), ("F16", "F16"), ("Q5_K", "Q6_K")):
        gate, up = (blocks(name, 101, n, seed) for seed, name in enumerate(names, 5))
        both = [ops.matmul.formula(normed, w) for w in (gate, up)]
        check(apply(ops.norm_swiglu, [x, norm, gate, up], eps=1e-5), [ops.swiglu.formula(*both)])


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_layer_of_one_token_takes_few_launches(kind):
    """The norm, then q, k and v at once; a gated unit at once; what is added, where the sum is at hand."""
    limits = Limits("any", kind, group_size=256, local_memory=32 << 10, allocation=1 << 30, memory=1 << 30)

    def array(*shape):
        return DeviceArray(None, shape, np.dtype(np.float32))

    def weight(m, name="Q4_0"):
        return DeviceWeight(ops.FORMATS[name], (m, 256), (Part(0, m, None),))

    def kernels(op, *operands, **attrs):
        return [launch.kernel for launch in TABLE[op.name](limits, *operands, **attrs, rooms=[None] * 3)]

    x, norm, q, k, v = array(1, 256), array(256), array(1, 256), array(1, 64), array(1, 64)
    qkv = [weight(256), weight(64), weight(64)]
    assert kernels(ops.norm_qkv, x, norm, *qkv, q, k, v, eps=1e-5) == ["rmsnorm", "matvec"]
    mixed = [weight(256), weight(64), weight(64, "Q6_K")]
    assert kernels(ops.norm_qkv, x, norm, *mixed, q, k, v, eps=1e-5) == ["rmsnorm", "matvec", "matvec"]
    assert kernels(ops.matmul_add, x, weight(256), x, q) == ["matvec"]
    assert kernels(ops.norm_swiglu, x, norm, weight(700), weight(700), array(1, 700), eps=1e-5) == ["rmsnorm", "matvec"]


@pytest.mark.parametrize(("group_size", "local_memory"), [(64, 1 << 15), (20, 1 << 15), (1, 1 << 15), (256, 3 << 10)])
def test_a_device_with_little_to_share(backend, group_size, local_memory):
    asked = backend.runtime.limits
    backend.runtime.limits = replace(asked, group_size=group_size, local_memory=local_memory)
    try:
        check_product(backend, blocks("Q5_1", 37, 64), 1)
        check_product(backend, blocks("Q5_1", 37, 64), 35)
    finally:
        backend.runtime.limits = asked


@pytest.mark.parametrize("name", list(ops.FORMATS))
def test_embedding_unpacks_to_the_last_bit(backend, name):
    weight = blocks(name, 9, 512 if ops.FORMATS[name].block_size > 1 else 37)
    tokens = np.array([8, 0, 3, 3])
    rows = backend.download(backend.kernel_of(ops.embedding)(backend.upload(tokens), backend.weight(weight)))
    right = weight.dequantize(tokens)
    # d * q + m may be one operation, without the rounding of d * q between: 2^-24 of it, which is at most 63 x 31 scales
    has_minimum = name in ("Q4_1", "Q4_1_F32", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
    np.testing.assert_allclose(rows, right, rtol=2.0**-23, atol=2.0**-24 * 63 * 31 if has_minimum else 0)


def test_rows_that_are_made_when_they_are_asked_for(backend):
    """A weight whose rows lie in another order in the file, brought to the device whole and in several buffers."""
    stored, order = blocks("Q4_0_F32", 23, 96), np.random.default_rng(1).permutation(23)
    made = Tensor("w", stored.shape, stored.format, MadeRows(stored.data.shape, lambda rows: stored.data[order[rows]]))
    right = stored.dequantize()[order]
    asked, tokens = backend.runtime.limits, np.array([22, 0, 4, 5, 11, 22])
    for rows_in_a_buffer in (23, 5):
        backend.runtime.limits = replace(asked, allocation=rows_in_a_buffer * 3 * 20)
        try:
            there = backend.weight(made)
        finally:
            backend.runtime.limits = asked
        assert len(there.parts) == -(-23 // rows_in_a_buffer)
        for n_tokens in (1, 9):
            check_product(backend, made, n_tokens, there)
        rows = backend.kernel_of(ops.embedding)(backend.upload(tokens), there)
        np.testing.assert_array_equal(backend.download(rows), right[tokens])
    np.testing.assert_array_equal(backend.download(backend.resident(made, "float")), right)


def test_gelu_is_right_in_the_tail_too(backend):
    """Relative to itself, where 1 + erf(x / sqrt(2)) has lost all digits."""
    x = np.linspace(-12.5, 12.5, 20_001).astype(np.float32)
    y = backend.download(backend.kernel_of(ops.gelu)(backend.upload(x[None])))[0]
    right = [v / 2 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]
    # two exponentials of 2 units each, nine steps of a polynomial, which is off by 3e-8 itself
    np.testing.assert_allclose(y, right, rtol=15 * 2.0**-24)


def test_every_float16(backend):
    """As a weight, and as the scale of weights that are 1."""
    every = np.arange(1 << 16, dtype=np.uint16)
    ones = np.full((1 << 16, 34), 1, np.uint8)
    ones[:, :2] = every[:, None].view(np.uint8)
    alone = Tensor("w", (1, 1 << 16), ops.FORMATS["F16"], every.view(np.uint8)[None])
    scales = Tensor("w", (1, 32 << 16), ops.FORMATS["Q8_0"], ones.reshape(1, -1))
    embedding = backend.kernel_of(ops.embedding)
    right = every.view(np.float16).astype(np.float32)
    for weight, step in ((alone, 1), (scales, 32)):
        row = backend.download(embedding(backend.upload(np.array([0])), backend.weight(weight)))[0, ::step]
        np.testing.assert_array_equal(row, right)
