"""Every check there is: one list serves pytest and the command."""

from __future__ import annotations

from . import contract_checks, graph_checks, laws, laws_attention, laws_every_op, memory_checks, ops_checks, runs  # noqa: F401
from .check import CHECKS, Check

ORDER = ("op", "graph", "contract", "law", "run")  # how the names begin


def checks() -> dict[str, Check]:
    """By name, in the order in which they run, also those of ops that a backend's module has registered by now."""
    ops_checks.declare()
    laws_every_op.declare()
    return dict(sorted(CHECKS.items(), key=lambda item: ORDER.index(item[0].partition("-")[0])))
