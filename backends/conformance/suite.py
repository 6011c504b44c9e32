"""Every check there is: one list serves pytest and the command."""

from __future__ import annotations

from . import (  # each declares its checks
    contract_checks,  # noqa: F401
    graph_checks,  # noqa: F401
    laws,  # noqa: F401
    laws_attention,  # noqa: F401
    laws_every_op,
    laws_rope,  # noqa: F401
    memory_checks,  # noqa: F401
    ops_checks,
    runs,  # noqa: F401
)
from .check import CHECKS, Check

ORDER = ("op", "graph", "contract", "law", "run")  # how the names begin


def checks() -> dict[str, Check]:
    """By name, in the order in which they run, also those of ops that a backend's module has registered by now."""
    ops_checks.declare()
    laws_every_op.declare()
    return dict(sorted(CHECKS.items(), key=lambda item: ORDER.index(item[0].partition("-")[0])))
