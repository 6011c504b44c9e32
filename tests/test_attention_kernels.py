"""Fused attention on devices, in the kernels for a CPU and those for a GPU, against the float64 formula.

Both kinds run on whatever OpenCL device is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import ops
from backends import Options

pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")

from backends.opencl import OpenCL

# float32 rounds by 2^-24. A score is a sum of d products, an output one of S whose terms cancel: an NMSE of up to 1e-12 for
# these sizes, and 5e-12 where scores are large, as their errors are too. To leave out one key of 2,100 makes 8e-6 and more.
NMSE = 1e-10


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def backend(request: pytest.FixtureRequest) -> OpenCL:
    return OpenCL(Options(device_features=request.param))


@pytest.fixture(params=[1, 2, 7])
def cores(request: pytest.FixtureRequest, backend: OpenCL) -> Iterator[int]:
    """The keys of a single token are cut into so many parts for each of two, whatever this machine has."""
    asked = backend.runtime.limits
    backend.runtime.limits = replace(asked, cores=request.param)
    yield request.param
    backend.runtime.limits = asked


def check(
    backend: OpenCL, positions: list[int], h: int, k: int, d: int, e: int, dtype: str = "float16", sharp: float = 1.0
) -> None:
    """Places that no token sees hold NaN, as does whatever lies in a cache's memory that was not written yet."""
    rng = np.random.default_rng(len(positions))
    seen, places = max(positions) + 1, max(positions) + 40
    q = rng.standard_normal((len(positions), h, d)).astype(np.float32)
    keys, values = (rng.standard_normal((places, k, n)).astype(dtype) for n in (d, e))
    keys[seen:] = values[seen:] = np.nan
    scale = sharp * d**-0.5
    there = [backend.upload(x) for x in (q, keys, values, np.array(positions))]
    y = backend.download(backend.kernel_of(ops.attention)(*there, scale=scale))
    in_sight = (x.astype(np.float64) for x in (q, keys[:seen], values[:seen]))
    right = ops.attention.formula(*in_sight, np.array(positions), scale=scale)
    assert y.shape == right.shape
    assert np.sum((y - right) ** 2) < NMSE * np.sum(right**2), (positions[-1], h, k, d, e, dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("d", "e"), [(64, 64), (2, 2), (40, 40), (80, 64), (128, 128), (256, 256), (64, 40), (2, 256)])
def test_heads_of_any_size(backend, d, e, dtype):
    """Multiples of sixteen and others; queries that share a key head, and such that do not."""
    for n_tokens, seen, h, k in ((1, 100, 6, 2), (7, 60, 3, 3), (33, 50, 8, 1)):
        check(backend, list(range(seen - n_tokens, seen)), h, k, d, e, dtype)


@pytest.mark.parametrize("n_tokens", [1, 2, 7, 8, 33, 130])
@pytest.mark.parametrize("past", [0, 1, 15, 16, 47, 48, 500, 1970])
def test_steps_of_any_length(backend, n_tokens, past):
    for h, k in ((3, 3), (9, 3), (8, 1)):
        check(backend, list(range(past, past + n_tokens)), h, k, 64, 64)


@pytest.mark.parametrize("seen", [1, 2, 16, 17, 33, 65, 224, 225, 1000])
def test_few_keys_for_many_cores(backend, cores, seen):
    """Parts that have no key, a single one, all."""
    check(backend, [seen - 1], 9, 3, 64, 64)


@pytest.mark.parametrize(("h", "k"), [(1, 1), (32, 32), (71, 1), (34, 2), (17, 1), (40, 20), (16, 2), (64, 8)])
def test_heads_of_one_token_in_groups(backend, cores, h, k):
    """More than a work-group takes; and more to a key head than it takes, whose last ones share a work-group with the next."""
    check(backend, [99], h, k, 64, 64)
    check(backend, [20], h, k, 128, 40)


def test_positions_need_not_follow_each_other(backend):
    order = np.random.default_rng(5).permutation(300)
    check(backend, order[:70].tolist(), 6, 2, 64, 64)
    check(backend, [0, 299, 3, 3, 150], 4, 2, 32, 32)
    check(backend, [290] + [0] * 60, 1, 1, 32, 32)


@pytest.mark.parametrize("sharp", [0.0, 30.0, 300.0])
def test_scores_that_are_equal_or_far_apart(backend, sharp):
    """exp(300 * 4) is no float32; and a largest score that turns up late makes all before it small."""
    check(backend, [700], 3, 1, 64, 64, sharp=sharp)
    check(backend, list(range(300, 350)), 3, 1, 64, 64, sharp=sharp)


def test_a_nan_in_sight_is_not_hidden(backend):
    """A model that has lost its numbers should not look as if it had some."""
    for n_tokens in (1, 20):
        q = np.ones((n_tokens, 2, 64), np.float32)
        keys = values = np.ones((30, 1, 64), np.float16)
        q[0, 1, 5] = np.nan
        there = [backend.upload(x) for x in (q, keys, values, np.arange(30 - n_tokens, 30))]
        y = backend.download(backend.kernel_of(ops.attention)(*there, scale=0.1))
        assert np.isnan(y[0, 1]).all()
        assert not np.isnan(y[0, 0]).any()
