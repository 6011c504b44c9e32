"""Products of 8-bit integers: every layout of panels, by every kind of instructions that this CPU has, alone and in fused ops.

The truth is the formula in float64, of x rounded as the kernels are meant to round it: what is left is float32's own rounding.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pytest

import ops
from backends import Options
from backends.conformance.blocks import weight
from backends.conformance.rounding import precise
from backends.device.array import DeviceWeight, PanelWeight
from backends.device.panels import LAYOUTS, panel_bytes
from backends.device.runtime import CANDIDATES
from ops.errors import BackendError
from ops.tensor import Tensor

pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")

from backends.opencl import OpenCL, devices

# float32 rounds by 2^-24 = 6e-8, in the square 4e-15, and some sums cancel. A scale, a sum or a byte in the wrong place is 1e-6
# and more.
NMSE = 1e-12


@pytest.fixture(scope="module", params=list(devices.NEEDS))
def backend(request: pytest.FixtureRequest) -> OpenCL:
    try:
        return OpenCL(Options(device_features=request.param))
    except BackendError as error:
        pytest.skip(str(error))


def rounded(x: np.ndarray, w: Tensor) -> np.ndarray:
    """Each number a multiple of its block's largest / 127, of blocks of 32 columns, or 256 for weights that have such blocks.
    In float32 as the kernels do it, where ties are decided."""
    blocks = x.astype(np.float32).reshape(len(x), -1, w.format.block_size)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return (np.rint(blocks * inverse) * (largest.astype(np.float64) / 127)).reshape(x.shape)


def drawn(name: str, m: int, n: int, seed: int = 0, scales: str = "usual") -> Tensor:
    return weight(np.random.default_rng(seed), "w", (m, n), name, scales)


def activations(n_tokens: int, n: int, seed: int = 1) -> np.ndarray:
    """With one number in each row that is much larger than the others, as models have them."""
    x = np.random.default_rng([seed, n_tokens]).standard_normal((n_tokens, n)).astype(np.float32)
    x[np.arange(n_tokens), np.arange(n_tokens) * 7 % n] *= 50
    return x


def assert_close(ours: np.ndarray, right: np.ndarray) -> None:
    assert ours.shape == right.shape
    assert np.sum((ours - right) ** 2) <= NMSE * np.sum(right**2)


def columns(name: str, blocks: int) -> int:
    return LAYOUTS[name].columns * blocks


@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("n_tokens", [1, 2, 4, 5, 33])
def test_products_are_those_of_rounded_x(backend, name, n_tokens):
    for m, blocks, scales in ((1, 1, "usual"), (16, 3, "mixed"), (37, 2, "usual"), (130, 5, "mixed")):
        w = drawn(name, m, columns(name, blocks), scales=scales)
        x = activations(n_tokens, columns(name, blocks))
        there = backend.resident(w, backend.form(w, "weight", ops.matmul))
        assert isinstance(there, PanelWeight)
        ours = backend.download(backend.kernel_of(ops.matmul)(backend.upload(x), there))
        assert_close(ours, ops.matmul.formula(rounded(x, w), w))


@pytest.mark.parametrize("name", list(LAYOUTS))
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 17])
def test_sums_that_are_as_large_as_they_can_be(backend, name, n_tokens):
    """Every q the largest of its format and every x the same: sums of 16 bits are full then, which they never are by chance."""
    w, n = drawn(name, 20, columns(name, 2)), columns(name, 2)
    quants = {"Q8_0": slice(2, None), "Q6_K": slice(0, 192), "Q4_K": slice(16, None), "Q5_K": slice(16, None)}
    at = quants.get(name) or slice({"Q4_0": 2, "Q4_1": 4, "Q5_0": 2, "Q5_1": 4}[name], None)
    bytes_of_blocks = w.data.reshape(20, -1, w.format.block_bytes)
    bytes_of_blocks[..., at] = 0x7F if name == "Q8_0" else 0xFF
    for sign in (1, -1):
        x = np.full((n_tokens, n), sign, np.float32)
        there = backend.resident(w, backend.form(w, "weight", ops.matmul))
        assert_close(backend.download(backend.kernel_of(ops.matmul)(backend.upload(x), there)), ops.matmul.formula(x, w))


@pytest.mark.parametrize("tokens", CANDIDATES["tokens"])
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_tiles_of_any_size(backend, name, tokens):
    """Also where the last one has few tokens. docs/opencl.md promises that results do not depend on the size."""
    tuned = OpenCL(backend.options)
    tuned.runtime.limits = replace(tuned.runtime.limits, tuning=replace(tuned.runtime.limits.tuning, tokens=tokens))
    w = drawn(name, 37, columns(name, 2), scales="mixed")
    for n_tokens in (64, 70):
        x = activations(n_tokens, columns(name, 2))
        (ours,), (others,) = (apply(one, ops.matmul, [x, w]) for one in (tuned, backend))
        assert_close(ours, ops.matmul.formula(rounded(x, w), w))
        np.testing.assert_array_equal(ours, others)


def apply(backend: OpenCL, op, operands: list, **attrs):
    buffers = [
        backend.resident(x, backend.form(x, "weight", op)) if isinstance(x, Tensor) else backend.upload(x) for x in operands
    ]
    results = backend.kernel_of(op)(*buffers, **attrs)
    return [backend.download(r) for r in (results if isinstance(results, tuple) else (results,))]


@pytest.mark.parametrize("n_tokens", [1, 3, 9])
def test_fused_products(backend, n_tokens):
    """Three formats at once, two of which have x rounded alike; what is rounded is the normed x."""
    n = 512
    x, norm = activations(n_tokens, n), 1 + activations(1, n)[0] / 100
    three = [drawn("Q4_K", 80, n, 1), drawn("Q8_0", 48, n, 2), drawn("Q6_K", 17, n, 3)]
    for ours, w in zip(apply(backend, ops.qkv, [x, *three]), three, strict=True):
        assert_close(ours, ops.matmul.formula(rounded(x, w), w))
    normed = ops.rmsnorm.formula(x, norm, eps=1e-5)
    for ours, w in zip(apply(backend, ops.norm_qkv, [x, norm, *three], eps=1e-5), three, strict=True):
        near(ours, ops.matmul.formula(rounded(normed, w), w))
    (ours,) = apply(backend, ops.norm_matmul, [x, norm, three[0]], eps=1e-5)
    near(ours, ops.matmul.formula(rounded(normed, three[0]), three[0]))
    residual = activations(n_tokens, 80, 5)
    (ours,) = apply(backend, ops.matmul_add, [x, three[0], residual])
    assert_close(ours, residual + ops.matmul.formula(rounded(x, three[0]), three[0]))
    mixed = [drawn("Q4_0", 80, n, 1), drawn("Q8_0", 48, n, 2), drawn("Q5_0", 17, n, 3)]  # one launch, though 8 bits are apart
    for ours, w in zip(apply(backend, ops.qkv, [x, *mixed]), mixed, strict=True):
        assert_close(ours, ops.matmul.formula(rounded(x, w), w))
    normed = ops.rmsnorm.formula(x, norm / 50, eps=1e-5)
    for names in (("Q4_0", "Q5_1"), ("Q8_0", "Q4_0"), ("Q5_K", "Q4_K"), ("Q4_0", "Q6_K")):  # the last two in two launches
        gate, up = (drawn(name, 70, n, seed) for seed, name in enumerate(names, 6))
        (ours,) = apply(backend, ops.norm_swiglu, [x, norm / 50, gate, up], eps=1e-5)
        products = (ops.matmul.formula(rounded(normed, w), w) for w in (gate, up))
        near(ours, ops.swiglu.formula(*products))


def near(ours: np.ndarray, right: np.ndarray) -> None:
    """Where x is normed first, float32 may round a number to the other side of a tie: a step of 127, for one x in thousands."""
    assert np.sum((ours - right) ** 2) <= 1e-6 * np.sum(right**2)


@pytest.mark.parametrize("n_tokens", [1, 6])
def test_formats_without_panels_beside_those_with(backend, n_tokens):
    n = 256
    x, norm = activations(n_tokens, n), 1 + activations(1, n)[0] / 100
    three = [drawn("Q4_0", 40, n, 1), drawn("F16", 24, n, 2), drawn("Q2_K", 24, n, 3)]
    assert isinstance(backend.resident(three[1], backend.form(three[1], "weight", ops.qkv)), DeviceWeight)
    normed = ops.rmsnorm.formula(x.astype(np.float64), norm, eps=1e-5)
    results = apply(backend, ops.norm_qkv, [x, norm, *three], eps=1e-5)
    near(results[0], ops.matmul.formula(rounded(normed, three[0]), three[0]))
    for ours, w in zip(results[1:], three[1:], strict=True):
        assert_close(ours, ops.matmul.formula(normed, w))
    gate, up = drawn("Q4_0", 40, n, 6), drawn("F32", 40, n, 7)
    (ours,) = apply(backend, ops.norm_swiglu, [x, norm / 50, gate, up], eps=1e-5)
    normed = ops.rmsnorm.formula(x.astype(np.float64), norm / 50, eps=1e-5)
    near(ours, ops.swiglu.formula(ops.matmul.formula(rounded(normed, gate), gate), ops.matmul.formula(normed, up)))


def test_a_weight_in_several_buffers(backend):
    """As where a device refuses a buffer as large as the whole: here of five panels, so that there are four."""
    small, five = OpenCL(backend.options), 5 * panel_bytes(LAYOUTS["Q8_0"], 256)
    small.runtime.limits = replace(small.runtime.limits, allocation=five)
    x = activations(5, 256)
    largest = small.panels(drawn("Q8_0", 300, 256, 3))
    assert max(part.memory.nbytes for part in largest.parts) == five
    w = drawn("Q4_1", 300, 256)
    there = small.panels(w)
    assert [part.n_rows for part in there.parts] == [80, 80, 80, 60]
    assert_close(apply(small, ops.matmul, [x, w])[0], ops.matmul.formula(rounded(x, w), w))
    gate, up = drawn("Q4_0", 300, 256, 1), drawn("Q5_1", 300, 256, 2)
    (ours,) = apply(small, ops.norm_swiglu, [x, np.full(256, 0.02, np.float32), gate, up], eps=1e-5)
    normed = rounded(ops.rmsnorm.formula(x, np.full(256, 0.02, np.float32), eps=1e-5), gate)
    near(ours, ops.swiglu.formula(ops.matmul.formula(normed, gate), ops.matmul.formula(normed, up)))


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_numbers_at_the_ends(backend, name):
    """A block of zeros stays zeros; NaN and infinity show in every row that they have a part in, and in no other token."""
    w = drawn(name, 20, 256)
    x = activations(4, 256)
    x[0] = 0
    x[1, 40] = np.nan
    x[2, 3] = np.inf
    (ours,) = apply(backend, ops.matmul, [x, w])
    assert not ours[0].any()
    assert not np.isfinite(ours[1:3]).any()
    assert_close(ours[3:], ops.matmul.formula(rounded(x[3:], w), w))


def test_what_a_cpu_lacks_is_told(monkeypatch):
    monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset({"avx2", "fma"}))
    with pytest.raises(BackendError, match="--device-features avx2: this CPU lacks f16c; cpu takes what it has"):
        OpenCL(Options(device_features="avx2"))
    assert OpenCL(Options(device_features="cpu")).runtime.limits.integers == "portable"


def test_precise_and_not_repacked():
    """Both keep x in float32 and the weight in the blocks of its file."""
    w = drawn("Q4_0", 20, 64)
    for options in (Options(precise=True), Options(repack=False)):
        backend = OpenCL(options)
        assert backend.form(w, "weight", ops.matmul) == "weight"
        x = activations(3, 64)
        assert_close(apply(backend, ops.matmul, [x, w])[0], ops.matmul.formula(x.astype(np.float64), w))


def test_rows_of_a_table_are_read_from_its_blocks():
    """A tied table is there twice: in panels for the product, in the file's blocks for the embedding."""
    backend = OpenCL()
    w = drawn("Q8_0", 40, 64)
    assert backend.form(w, "weight", ops.embedding) == "weight"
    assert backend.resident_bytes(w, "weight") == w.nbytes
    assert backend.resident_bytes(w, backend.form(w, "weight", ops.norm_matmul)) == 3 * 2 * 544  # 48 rows


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pyopencl has another cache folder")
def test_pyopencl_does_without_a_cache_that_cannot_be(monkeypatch, tmp_path):
    """It would fail in the midst of a step, when it compiles."""
    (tmp_path / "file").touch()
    monkeypatch.delenv("PYOPENCL_NO_CACHE", raising=False)
    for folder, without in ((tmp_path / "new", None), (tmp_path / "file", "1")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        devices.load_pyopencl()
        assert os.environ.get("PYOPENCL_NO_CACHE") == without
    monkeypatch.delenv("PYOPENCL_NO_CACHE")


def test_only_a_backend_that_rounds_has_a_precise_twin():
    """It is the other one's equal in all else, so a second one would compile everything once more."""
    exact, rounds = OpenCL(Options(device_features="gpu")), OpenCL()
    assert precise(exact) is exact
    assert precise(rounds) is precise(rounds) is not rounds
    assert precise(rounds).options.precise
