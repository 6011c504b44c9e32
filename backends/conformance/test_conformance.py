"""What `pytest --pyargs backends.conformance --backend NAME` runs: a test for every check."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import Backend
from backends.conformance.check import Check, Draws
from backends.conformance.expected import read_patterns
from backends.conformance.judge import TALLY, Tally
from backends.conformance.plugin import backend_of, option
from backends.conformance.replay import attempt
from backends.conformance.suite import checks
from backends.conformance.support import fallback
from ops.errors import OptionError


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The checks as parameters, those of the skips file and the xfails file marked."""
    config = metafunc.config
    if option(config, "--backend") is None:  # collected along with something else
        metafunc.parametrize("check", [pytest.param(None, marks=pytest.mark.skip("no --backend is named"))])
        return
    backend_of(config)  # first: its module may register ops
    named = checks()
    try:
        skips, xfails = (
            read_patterns(path, named) if (path := option(config, name)) else {} for name in ("--skips-file", "--xfails-file")
        )
    except OptionError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    params = []
    for name, check in named.items():
        marks: list[pytest.MarkDecorator] = []
        if name in skips:
            marks.append(pytest.mark.skip(reason=skips[name]))
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


@settings(deadline=None, report_multiple_bugs=False, print_blob=False, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_check(backend: Backend, check: Check, tally: Tally, data: Draws) -> None:
    token = TALLY.set(tally)
    try:
        attempt(backend, check, data)
    finally:
        TALLY.reset(token)
