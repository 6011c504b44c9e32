"""The kit's findings as text: who was tested, a line a check, and what failed."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from ..base import Backend
from .case import Case
from .runner import Outcome


def header(backend: Backend) -> list[str]:
    """Backend, device, versions."""
    device = f"device: {backend.options.device}, " if backend.options.device else ""
    return [
        f"conformance of backend: {backend.name} ({type(backend).__module__}:{type(backend).__qualname__})",
        f"runs on: {device}{backend.describe()}",
        f"versions: {', '.join(f'{name} {number}' for name, number in versions(backend).items())}",
    ]


def versions(backend: Backend) -> dict[str, str]:
    """Of all that has a part in the result."""
    found = {"tinyllama": "", "python": platform.python_version(), "numpy": np.__version__}
    for package in ("tinyllama", "hypothesis", type(backend).__module__.partition(".")[0], "pyopencl", "pocl", "cupy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {name: number for name, number in found.items() if number}


def where(case: Case | None) -> str:
    """A case in a few words: sizes, and what is unusual about it."""
    if case is None:
        return ""
    words = [f"{k}={v}" for k, v in case.sizes.items()]
    words += [f"x{case.magnitude:g}"] if case.magnitude != 1 else []
    words += [case.values] if case.values != "normal" else []
    words += [f"{case.scales} scales"] if case.scales != "usual" else []
    return " ".join([*words, case.path])


def row(outcome: Outcome) -> list[str]:
    """Op or name, dtype, cases, worst NMSE, where, verdict, kernel or fallback (of a skipped check: why)."""
    check, tally = outcome.check, outcome.tally
    is_op = check.name.startswith("op-")
    return [
        check.ops[0] if is_op else check.name,
        check.dtype,
        str(tally.cases or tally.runs or ""),
        f"{tally.nmse:.1e}" if tally.where else "",
        where(tally.where),
        outcome.verdict,
        outcome.told if outcome.verdict == "skipped" else _shortened(outcome.by),
    ]


def _shortened(by: str) -> str:
    """The first two of many ops: most checks of whole models need a dozen."""
    names = by.split(", ")
    return by if len(names) <= 2 else f"{', '.join(names[:2])}, and {len(names) - 2} more"


HEADINGS = ["op", "dtype", "cases", "worst NMSE", "where", "verdict", "by"]
WIDTHS = [30, 5, 5, 10, 52, 8, 0]


def summary(outcomes: Iterable[Outcome]) -> str:
    """`52 ok, 3 fallback, 1 FAILED`"""
    counted: dict[str, int] = {}
    for outcome in outcomes:
        counted[outcome.verdict] = counted.get(outcome.verdict, 0) + 1
    return ", ".join(f"{count} {verdict}" for verdict, count in counted.items()) or "no check"
