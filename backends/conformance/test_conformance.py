"""What `pytest --pyargs backends.conformance --backend NAME` runs: a test for every check."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import Backend
from backends.conformance.check import Check, Draws
from backends.conformance.judge import TALLY, Tally
from backends.conformance.plugin import backend_of, excused
from backends.conformance.replay import attempt
from backends.conformance.suite import checks
from backends.conformance.support import fallback, unsupported


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The checks as parameters, those of the skips file and the xfails file marked."""
    skips, xfails = excused(metafunc.config)
    params = []
    for name, check in checks().items():
        marks: list[pytest.MarkDecorator] = []
        if name in skips:
            marks.append(pytest.mark.skip(reason=skips[name]))  # the user's own: the comment or the line of the skips file
        if name in xfails:
            marks.append(pytest.mark.xfail(reason=xfails[name], strict=False))
        params.append(pytest.param(check, id=name, marks=marks))
    metafunc.parametrize("check", params)


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    return backend_of(request.config)


@pytest.fixture
def tally(request: pytest.FixtureRequest, backend: Backend, check: Check) -> Tally:
    """Counts the cases, for reports; and tells whether this check's ops have kernels."""
    tally = Tally()
    if lacking := fallback(backend, check):
        request.node.user_properties.append(("fallback", lacking))
    return tally


def test_check(backend: Backend, check: Check, tally: Tally) -> None:
    """As many examples as the profile says, fewer if the check takes long."""
    if why := unsupported(backend, check):
        pytest.skip(why)
    default = settings()

    @settings(
        max_examples=min(default.max_examples, check.examples or default.max_examples),
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def draw_and_run(data: Draws) -> None:
        attempt(backend, check, data)

    token = TALLY.set(tally)
    try:
        draw_and_run()
    finally:
        TALLY.reset(token)
