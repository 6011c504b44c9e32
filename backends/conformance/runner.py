"""Runs checks with hypothesis, outside pytest: for the command line, and for whoever wants the outcome as data."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure

from ..base import Backend
from .check import Check, Draws
from .judge import TALLY, Tally
from .replay import attempt
from .support import KERNEL, fallback, unsupported

EXAMPLES = 100  # hypothesis' own default


@dataclass(frozen=True)
class Outcome:
    """`verdict`: ok, fallback (right, but an op had no kernel), FAILED, skipped; xfailed and xpassed where it might fail."""

    check: Check
    verdict: str
    by: str  # "kernel", or which ops ran without one; "" for what is not about ops
    tally: Tally = field(default_factory=Tally)
    told: str = ""  # what failed, with the code to see it again; or why it was skipped
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """For JSON."""
        check, tally = self.check, self.tally
        return {
            "name": check.name, "ops": list(check.ops), "dtype": check.dtype, "about": check.told, "verdict": self.verdict,
            "by": self.by, "cases": tally.cases, "worst_nmse": tally.nmse if tally.where else None,
            "limit": tally.limit if tally.where else None, "where": repr(tally.where) if tally.where else None,
            "told": self.told, "seconds": round(self.seconds, 3),
        }  # fmt: skip


def random_seed() -> int:
    return random.SystemRandom().randrange(2**32)


def run_check(
    backend: Backend, check: Check, *, examples: int = EXAMPLES, at: int | None = None, shrink: bool = True
) -> Outcome:
    """Draw `examples` cases, fewer if the check takes long, from the seed `at`; a failing one is then made small (`shrink`)."""
    tally = Tally()

    @seed(random_seed() if at is None else at)
    @settings(
        max_examples=min(examples, check.examples or examples),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    @given(st.data())
    def draw_and_run(data: Draws) -> None:
        tally.runs += 1
        attempt(backend, check, data)

    lacking = fallback(backend, check)
    by = lacking or (KERNEL if check.ops else "")
    token = TALLY.set(tally)
    began = time.perf_counter()
    try:
        draw_and_run()
    except Exception as error:  # an AssertionError that tells all; or whatever a foreign backend raises
        return Outcome(check, "FAILED", by, tally, told(error), time.perf_counter() - began)
    finally:
        TALLY.reset(token)
    return Outcome(check, "fallback" if lacking else "ok", by, tally, "", time.perf_counter() - began)


def run_checks(
    backend: Backend,
    checks: Mapping[str, Check],
    *,
    examples: int = EXAMPLES,
    at: int | None = None,
    skips: Mapping[str, str] | None = None,
    xfails: Mapping[str, str] | None = None,
) -> Iterator[Outcome]:
    """The outcomes of these checks, one after the other."""
    skips, xfails = skips or {}, xfails or {}
    for name, check in checks.items():
        if why := skips.get(name) or unsupported(backend, check):
            yield Outcome(check, "skipped", "", told=why)
            continue
        outcome = run_check(backend, check, examples=examples, at=at)
        if name in xfails:
            verdict = "xfailed" if outcome.verdict == "FAILED" else "xpassed"
            outcome = Outcome(check, verdict, outcome.by, outcome.tally, xfails[name], outcome.seconds)
        yield outcome


def told(error: BaseException) -> str:
    """What went wrong; of a failure that did not come back, what it was the first time."""
    if isinstance(error, FlakyFailure):
        return f"{told(error.exceptions[0])}\nIt did not fail again with the same draws: the result depends on chance."
    return str(error) if isinstance(error, AssertionError) else f"raised {type(error).__name__}: {error}"
