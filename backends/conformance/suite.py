"""Every check there is: one list serves pytest and the command."""

from __future__ import annotations

from importlib import import_module

from . import laws_every_op, ops_checks
from .check import CHECKS, Check

MODULES = ("graph_checks", "contract_checks", "laws", "laws_attention", "runs", "memory_checks")


def checks() -> dict[str, Check]:
    """By name, in the order in which they run: ops first, also those that a backend's module has registered by now."""
    ops_checks.declare()
    laws_every_op.declare()
    for module in MODULES:
        try:
            import_module(f".{module}", __package__)
        except ModuleNotFoundError:
            pass
    rank = {"op": 0, "graph": 1, "contract": 2}
    return dict(sorted(CHECKS.items(), key=lambda item: rank.get(item[0].split("-")[0], 3)))
