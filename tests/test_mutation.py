"""The kit itself, tested with backends that are wrong in one way each, and with right ones."""

from __future__ import annotations

import pytest
from mutants import MUTANTS
from mutants.attention import InParts
from mutants.plans import Plain
from mutants.weights import Misread

from backends.base import Backend
from backends.conformance.runner import EXAMPLES, run_check
from backends.conformance.suite import checks
from backends.numpy import Numpy

CHECKS = checks()
# What mutants are made of, before anything in it is wrong.
RIGHT = {"numpy": Numpy, "reference": Backend, "in parts": InParts, "plain": Plain, "dequantised": Misread}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_backend_is_caught(name):
    """Within the default number of examples, whatever the seed; by one of the checks of what is wrong."""
    mutant = MUTANTS[name]
    for seed in range(3):
        concerned = mutant.concerned(CHECKS.values())
        outcomes = (run_check(mutant.backend(), check, examples=EXAMPLES, at=seed, shrink=False) for check in concerned)
        assert any(outcome.verdict == "FAILED" for outcome in outcomes), (
            f"seed {seed}: not one of {[c.name for c in concerned]} fails; {mutant.backend.__doc__}"
        )


@pytest.mark.parametrize(
    ("name", "seed"),
    [(name, seed) for name in RIGHT for seed in range(20 if name in ("numpy", "reference") else 4)],
)
def test_a_right_backend_passes(name, seed):
    """The kit fails nobody by chance. For the sake of time each seed runs a quarter of the checks, two examples of each."""
    backend = RIGHT[name]()
    for n, check in enumerate(CHECKS.values()):
        if (n + seed) % 4 == 0:
            outcome = run_check(backend, check, examples=2, at=seed, shrink=False)
            assert outcome.verdict in ("ok", "fallback"), outcome.told
