"""The options of `pytest --pyargs backends.conformance`: a plugin that pytest finds by its entry point.

A conftest.py inside an installed package is read too late to add options. A plugin is there in every pytest run of this Python,
so this one imports nothing until the kit's own tests are asked for, and adds its options last: where another plugin or a
conftest has a `--backend` of its own, that one stays, and is read here.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..base import Backend

HERE = Path(__file__).parent
PACKAGE = "backends.conformance"
OPTIONS = (
    ("--backend", "NAME", "backend to test: numpy, opencl, cupy, an installed one, or module:Class"),
    ("--device", "NAME", "device of the backend: its number, or a part of its name"),
    ("--device-features", "KIND", "run the kernels made for another kind of device than the one found"),
    ("--skips-file", "FILE", "checks not to run, one name or op:dtype a line, globs allowed"),
    ("--xfails-file", "FILE", "checks that may fail, in the same form"),
)
MISSING = object()
BACKEND: pytest.StashKey[Backend] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser) -> Generator[None, None, None]:
    """Add the options once all others are there."""
    yield
    group = parser.getgroup("conformance", "conformance kit of array backends (pytest --pyargs backends.conformance)")
    for name, metavar, told in OPTIONS:
        if early_config.getoption(name, default=MISSING) is MISSING:  # else it is someone else's
            group.addoption(name, metavar=metavar, default=None, help=told)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the backend now: one that cannot be made is one sentence, and not an error a test."""
    if _is_asked_for(session.config):
        backend_of(session.config)
        excused(session.config)


def backend_of(config: pytest.Config) -> Backend:
    """The backend under test. UsageError: none was named, or it cannot be made."""
    if BACKEND in config.stash:
        return config.stash[BACKEND]
    if find_spec("hypothesis") is None:
        raise pytest.UsageError('the conformance kit needs hypothesis, which is missing: pip install "tinyllama[test]"')
    from ops.errors import TinyLlamaError

    from ..base import Options
    from ..registry import get_backend

    name = option(config, "--backend")
    if name is None:
        raise pytest.UsageError("name the backend to test: --backend numpy, opencl, cupy, or module:Class")
    sys.path.append(os.getcwd())  # where module:Class is looked for last
    options = Options(device=option(config, "--device"), device_features=option(config, "--device-features"))
    try:
        config.stash[BACKEND] = made = get_backend(name, options)
    except TinyLlamaError as error:
        raise pytest.UsageError(str(error)) from None
    return made


def excused(config: pytest.Config) -> tuple[dict[str, str], dict[str, str]]:
    """name of a check -> why: those to skip, and those that may fail. UsageError: a file cannot be read, or names nothing."""
    from ops.errors import OptionError

    from .expected import read_patterns
    from .suite import checks

    backend_of(config)  # first: its module may register ops
    paths = (option(config, "--skips-file"), option(config, "--xfails-file"))
    try:
        skips, xfails = (read_patterns(path, checks()) if path else {} for path in paths)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None
    return skips, xfails


def option(config: pytest.Config, name: str) -> str | None:
    """Ours, or someone else's of that name: then the last of a list."""
    value: Any = config.getoption(name, default=None)
    if isinstance(value, (list, tuple)):
        value = value[-1] if value else None
    return None if value in (None, False) else str(value)


def pytest_report_header(config: pytest.Config) -> list[str]:
    if not _is_asked_for(config):
        return []
    from .report import header

    return header(backend_of(config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A failed check tells all by itself; and its code can be copied, without pytest's margin."""
    report = yield
    if report.failed and report.when == "call" and _is_ours(item) and call.excinfo:
        from hypothesis.errors import FlakyFailure

        from .runner import told

        if call.excinfo.errisinstance((AssertionError, FlakyFailure)):
            cause = call.excinfo.value.__cause__
            trace = "".join(traceback.format_exception(cause)) if cause else ""
            report.longrepr = f"{told(call.excinfo.value)}\n{trace}"
    return report


def _is_ours(item: pytest.Item) -> bool:
    return item.path.parent == HERE


def pytest_report_teststatus(report: pytest.CollectReport | pytest.TestReport, config: pytest.Config) -> Any:
    """A check of an op that the backend has no kernel for is not "passed": f, counted as "fallback"."""
    if isinstance(report, pytest.TestReport) and report.when == "call" and report.passed:
        lacking = dict(report.user_properties).get("fallback")
        if lacking and not hasattr(report, "wasxfail"):
            return "fallback", "f", (f"FALLBACK ({lacking})", {"yellow": True})
    return None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = terminalreporter.stats.get("fallback", [])
    if reports:
        terminalreporter.section("fallback: right, but not by a kernel of this backend")
        for lacking in sorted({str(dict(report.user_properties)["fallback"]) for report in reports}):
            terminalreporter.line(lacking)


def _is_asked_for(config: pytest.Config) -> bool:
    """Does the command line name the kit: its package, its folder or a file in it?"""
    for arg in config.args:
        place = str(arg).split("::")[0]
        if (
            place.split("[")[0].startswith(PACKAGE)
            or HERE in (path := Path(config.invocation_params.dir, place)).parents
            or path == HERE
        ):
            return True
    return False
