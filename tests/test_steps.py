"""A step's kernels as one: the same bits as one by one, by every kind of instructions, with any number of work-groups.

That the kernels are right one by one, test_products_int8.py, test_attention_kernels.py and the conformance kit show.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends import Options
from backends.device import plan
from ops.errors import BackendError
from tinyllama import Model

pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install -e '.[opencl]'")

from backends.opencl import OpenCL, devices

# Work-groups of a step: one alone; as many as this device has cores; more, so that some begin when all is done
CORES = [1, None, 7]


def made(features: str, cores: int | None) -> OpenCL:
    try:
        backend = OpenCL(Options(device_features=features))
    except BackendError as error:
        pytest.skip(str(error))
    if cores is not None:
        backend.runtime.limits = replace(backend.runtime.limits, cores=cores)
    return backend


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("features", list(devices.NEEDS))
def test_the_same_bits(smollm2, features, cores):
    """Over a few steps, each of which the next one needs; an observer has the kernels run one by one."""
    backend = made(features, cores)
    model = Model.load(smollm2, backend=backend, n_ctx=400)
    together, apart = model.context(), model.context()
    prompt = list(range(1000, 1300 if cores is None else 1020))
    assert np.array_equal(together.eval(prompt), apart.eval(prompt))
    for token in range(5):
        before, _ = backend.launched()
        ours = together.eval([token])
        between, _ = backend.launched()
        assert np.array_equal(ours, apart.eval([token], observe=lambda event: None))
        after, _ = backend.launched()
    assert between - before == 2  # the embedding, and all that comes after it
    assert after - between > 7 * model.config.n_layer


def test_two_contexts_in_turns(smollm2):
    """Counters are zeros again after each step, whatever came between."""
    model = Model.load(smollm2, backend=made("cpu", None), n_ctx=64)
    first, second, alone = (model.context() for _ in range(3))
    tokens = list(range(2000, 2010))
    for token in tokens:
        expected = alone.eval([token])
        assert np.array_equal(first.eval([token]), expected)
        assert np.array_equal(second.eval([token]), expected)


def test_a_table_without_room(smollm2, monkeypatch):
    """Then the launches stay as they are."""
    backend = made("cpu", None)
    model = Model.load(smollm2, backend=backend, n_ctx=64)
    monkeypatch.setattr(plan, "table", lambda limits, graph: 1000)
    apart = model.context()
    monkeypatch.undo()
    together = model.context()
    for token in (1, 2, 3):
        assert np.array_equal(together.eval([token]), apart.eval([token]))
    before, _ = backend.launched()
    apart.eval([4])
    assert backend.launched()[0] - before > 7 * model.config.n_layer


def test_weights_in_several_buffers(smollm2):
    """Gate and up are two launches then, and the logits have several."""
    backend = made("cpu", None)
    backend.runtime.limits = replace(backend.runtime.limits, allocation=600_000)
    model = Model.load(smollm2, backend=backend, n_ctx=64)
    together, apart = model.context(), model.context()
    for token in (1, 2, 3):
        assert np.array_equal(together.eval([token]), apart.eval([token], observe=lambda event: None))
