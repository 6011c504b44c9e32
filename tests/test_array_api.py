"""The backend over the array API standard: kernels against the float64 formulas, whole models against PyTorch's logits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import ops
from backends import get_backend
from backends.array_api import ArrayApi, Strict, Torch
from ops.errors import BackendError
from ops.op import OPS
from tinyllama import Model

DATA = Path(__file__).parent / "data"
ATTRS = {
    "rmsnorm": {"eps": 1e-5},
    "layernorm": {"eps": 1e-5},
    "causal_mask": {"scale": 0.3},
    "attention": {"scale": 0.3},
    "split_heads": {"h": 2},
}
DECODE = {"T": 1, "U": 1, "n": 6, "m": 5, "V": 7, "h": 2, "k": 2, "d": 4, "e": 4, "r": 2, "S": 1, "C": 1}
PREFILL = {"T": 5, "U": 2, "n": 34, "m": 3, "V": 11, "h": 6, "k": 2, "d": 10, "e": 7, "r": 3, "S": 9, "C": 13}


# Every op but those fused ones that run as what they are made of, and top_k, which gives integers too (tests/test_top_k.py)
KERNELS = [op for op in OPS.values() if op.name != "top_k" and (op.name in ArrayApi._kernels or not op.fused)]


@pytest.fixture(scope="module", params=[Strict, Torch], ids=lambda cls: cls.name)
def backend(request: pytest.FixtureRequest) -> ArrayApi:
    try:
        return request.param()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("sizes", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize("op", KERNELS, ids=lambda op: op.name)
def test_every_op_has_a_kernel_that_agrees_with_the_float64_formula(backend, op, sizes):
    rng = np.random.default_rng(0)
    attrs = ATTRS.get(op.name, {})
    integers = {
        "positions": np.arange(sizes["S"] - sizes["T"], sizes["S"]),
        "tokens": rng.integers(0, sizes["V"], sizes["T"]),
        "ids": rng.integers(0, sizes["T"], sizes["U"]),
    }
    single = [integers[o.name] if o.dtype == "int" else draw(rng, *(sizes[d] for d in o.dims)) for o in op.inputs]
    double = [x.astype(np.float64) if x.dtype == np.float32 else x for x in single]
    buffers = [backend.upload(x) for x in single]
    result = backend.download(backend.kernel_of(op)(*buffers, **attrs))
    truth = op.formula(*double, **attrs)
    assert result.dtype == np.float32
    # sums of at most 34 products of numbers near 1, and exp of at most 10: some ten roundings of 2^-24 at a value near 10
    np.testing.assert_allclose(result, truth, rtol=1e-5, atol=1e-5)
    for operand, buffer, was, written in zip(op.inputs, buffers, single, double, strict=True):
        np.testing.assert_array_equal(backend.download(buffer), written if operand.written else was)


@pytest.mark.parametrize("neox", [False, True])
def test_rope_is_exact_far_out(backend, neox):
    x, freqs = draw(np.random.default_rng(1), 1, 3, 64), (10_000.0 ** (-np.arange(32) / 32)).astype(np.float32)
    at = np.array([100_000])
    y = backend.download(backend.rope(*map(backend.upload, (x, at, freqs)), neox=neox))
    # cos and sin of one, rounded to float32, and two products of numbers near 3; angles in float32 would be off by 4e-3
    np.testing.assert_allclose(y, ops.rope(x.astype(np.float64), at, freqs, neox=neox), atol=1e-6)


@pytest.mark.parametrize("name", ["llama-q", "llama-gqa-tied", "qwen2"])
@pytest.mark.parametrize("n_batch", [5, 64])
def test_a_model_gives_the_logits_of_pytorch(backend, name, n_batch):
    """Prompts longer than a batch write to a cache that holds something, and look back at it."""
    golden = np.load(DATA / "tiny" / f"{name}.npz")
    model = Model.load(DATA / "tiny" / f"{name}.gguf", backend=backend)
    logits = model.context(n_batch=n_batch).eval(golden["prompt_3"].tolist(), logits="all")
    # five times the rounding of two layers in float32, observed; the least mistake moves logits by 7e-4 (test_logits.py)
    assert np.abs(logits - golden["logits_3"]).max() < 1e-5 * np.abs(golden["logits_3"]).max()
    assert not model.coverage().on_host


def test_what_goes_up_and_comes_down_is_a_copy(backend):
    host = np.arange(24, dtype=np.float32).reshape(4, 6)
    for given in (host[::-1, ::2], host.T, np.broadcast_to(host[0], (3, 6))):
        wanted = given.copy()
        buffer = backend.upload(given)
        host += 1
        backend.download(buffer)[:] = -1
        np.testing.assert_array_equal(backend.download(buffer), wanted)
        assert backend.nbytes(buffer) == wanted.nbytes


def test_a_cache_is_zero_and_keeps_its_rows_when_it_grows(backend):
    cache = backend.allocate((3, 2, 4), np.float32)
    backend.overwrite(cache, np.ones((2, 2, 4), np.float32))
    rows = backend.download(backend.enlarge(cache, 5))
    np.testing.assert_array_equal(rows[:, 0, 0], [1, 1, 0, 0, 0])


def test_a_half_precision_cache_rounds_to_nearest_or_is_refused(backend):
    """array-api-strict has what the standard has, which is no float16."""
    if backend.name == "array_api_strict":
        with pytest.raises(BackendError, match="'array_api_strict' has no float16: use a KV cache of float32"):
            backend.allocate((4, 1, 8), np.float16)
        return
    rng = np.random.default_rng(2)
    cache, x, q = backend.allocate((4, 1, 8), np.float16), draw(rng, 3, 1, 8), draw(rng, 3, 2, 8)
    positions = backend.upload(np.arange(3))
    seen = backend.kv_write(cache, backend.upload(x), positions)
    half = x.astype(np.float16)
    np.testing.assert_array_equal(backend.download(cache)[:3], half)
    y = backend.download(backend.attention(backend.upload(q), seen, seen, positions, scale=0.3))
    truth = ops.attention(q.astype(np.float64), half.astype(np.float64), half.astype(np.float64), np.arange(3), scale=0.3)
    np.testing.assert_allclose(y, truth, rtol=1e-5, atol=1e-6)  # rounded once, in the cache; float32 from there


def test_what_to_install_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_api_strict", None)  # as if it were not installed
    with pytest.raises(BackendError, match="'array_api_strict' finds no array_api_strict: pip install array-api-strict"):
        get_backend("backends.array_api:Strict")


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)
