"""How a backend computes each op: by its own kernel, by the ops that a fused one is made of, or on the host."""

from __future__ import annotations

from ops.op import OPS, Op

from ..base import Backend
from .check import Check
from .strategies import KV, dtypes

KERNEL, DECOMPOSED, ON_HOST = "kernel", "decomposed", "on the host"


def how(backend: Backend, op: Op) -> str:
    """One of the three."""
    if backend.kernel_of(op) is not None:
        return KERNEL
    return DECOMPOSED if op.fused else ON_HOST


def fallback(backend: Backend, check: Check) -> str:
    """What a check ran without: `swiglu decomposed, rope on the host`; nothing if all its ops have kernels."""
    lacking = {name: how(backend, OPS[name]) for name in check.ops if how(backend, OPS[name]) != KERNEL}
    return ", ".join(f"{name} {told}" for name, told in lacking.items())


def unsupported(backend: Backend, check: Check) -> str:
    """Why this check does not concern the backend; nothing if it does."""
    if check.dtype in KV.values() and check.dtype not in (KV[dtype] for dtype in backend.kv_dtypes):
        return f"backend '{backend.name}' keeps caches in {', '.join(backend.kv_dtypes)} only"
    return ""


def support(backend: Backend) -> list[dict[str, str]]:
    """A record for every op and dtype, without running anything."""
    return [
        {"op": op.name, "dtype": dtype, "by": how(backend, op)}
        for op in OPS.values()
        for dtype in dtypes(op, backend.kv_dtypes)
    ]
