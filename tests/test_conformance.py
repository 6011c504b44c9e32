"""The conformance kit, pointed at every backend of ours that can run here. docs/conformance.md tells how to run it whole."""

from __future__ import annotations

from functools import cache

import pytest

from backends import Backend, Options, get_backend
from backends.conformance.runner import run_check
from backends.conformance.suite import checks
from backends.conformance.support import unsupported
from ops.errors import BackendError

BACKENDS = {
    "numpy": ("numpy", Options()),
    "opencl-cpu": ("opencl", Options(device_features="cpu")),
    "opencl-gpu": ("opencl", Options(device_features="gpu")),  # on a CPU if there is no GPU: slow, and just as right
    "array-api-strict": ("backends.array_api:Strict", Options()),
    "torch": ("backends.array_api:Torch", Options()),
}
EXAMPLES = 8  # of each check: a quick look, for the sake of time


@cache
def made(name: str) -> Backend | str:
    """The backend, or why there is none."""
    try:
        return get_backend(*BACKENDS[name])
    except BackendError as error:
        return str(error)


@pytest.mark.parametrize("check", checks())
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_of_ours_conforms(name, check):
    backend = made(name)
    if isinstance(backend, str):
        pytest.skip(backend)
    if why := unsupported(backend, checks()[check]):
        pytest.skip(why)
    outcome = run_check(backend, checks()[check], examples=EXAMPLES)
    assert outcome.verdict == "ok", outcome.told
