"""The kit itself, tested with backends that are wrong in one way each, and with right ones."""

from __future__ import annotations

import pytest

from backends import get_backend
from backends.conformance.runner import EXAMPLES, run_check
from backends.conformance.suite import checks

from mutants import MUTANTS

CHECKS = checks()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_backend_is_caught(name):
    """Within the default number of examples, whatever the seed; by one of the checks of what is wrong."""
    mutant = MUTANTS[name]
    concerned = mutant.concerned(CHECKS.values())
    for seed in range(3):
        outcomes = (run_check(mutant.backend(), check, examples=EXAMPLES, at=seed, shrink=False) for check in concerned)
        caught = next((o for o in outcomes if o.verdict == "FAILED"), None)
        assert caught, f"seed {seed}: not one of {[c.name for c in concerned]} fails; {mutant.backend.__doc__}"
