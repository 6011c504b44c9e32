"""The conformance kit, pointed at every backend of ours that can run here. docs/conformance.md tells how to run it whole."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from backends import Backend, Options, get_backend
from backends.conformance.runner import run_check
from backends.conformance.suite import checks
from backends.conformance.support import unsupported
from backends.device.panels import LAYOUTS
from backends.device.products import MULTIPLIED
from ops.errors import BackendError
from ops.op import OPS

BACKENDS = {
    "numpy": ("numpy", Options()),
    "opencl-cpu": ("opencl", Options(device_features="cpu")),
    # the products of the CPUs that are not like this one
    "opencl-avx2": ("opencl", Options(device_features="avx2")),
    "opencl-portable": ("opencl", Options(device_features="portable")),
    "opencl-gpu": ("opencl", Options(device_features="gpu")),  # on a CPU if there is no GPU: slow, and just as right
    "array-api-strict": ("backends.array_api:Strict", Options()),
    "torch": ("backends.array_api:Torch", Options()),
}
PRODUCTS = {op.name for op in MULTIPLIED}
EXAMPLES = 5  # of each check: a quick look, for the sake of time


@cache
def made(name: str) -> Backend | str:
    """The backend, or why there is none."""
    try:
        return get_backend(*BACKENDS[name])
    except BackendError as error:
        return str(error)


def backends_and_checks() -> Iterator[tuple[str, str]]:
    """All checks of each; where only products differ, those of products, and a layer that is made of them."""
    for name in BACKENDS:
        only_products = name in ("opencl-avx2", "opencl-portable")
        for check in checks().values():
            in_panels = check.dtype in LAYOUTS and check.name.startswith("op-") and {*check.ops} & PRODUCTS
            if not only_products or in_panels or check.name == "graph-rounded":
                yield name, check.name


@pytest.mark.parametrize(("name", "check"), backends_and_checks())
def test_a_backend_of_ours_conforms(name, check):
    backend = made(name)
    if isinstance(backend, str):
        pytest.skip(backend)
    if why := unsupported(backend, checks()[check]):
        pytest.skip(why)
    outcome = run_check(backend, checks()[check], examples=EXAMPLES)
    # fused ops that a backend lacks are computed by their parts; no model has top_k, for which the host is good enough
    may_lack = {op for op in checks()[check].ops if OPS[op].fused or op == "top_k"}
    assert outcome.verdict == "ok" or (outcome.verdict == "fallback" and may_lack), outcome.told
