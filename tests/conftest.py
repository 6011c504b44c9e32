"""What several test files share: the real model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from ops.errors import FetchError
from tinyllama.models import find


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, fetched as the product fetches it: once, then from the cache folder."""
    try:
        return find("smollm2")
    except FetchError as error:
        pytest.skip(f"needs the model smollm2: {error}")


@pytest.fixture(scope="session", autouse=True)
def panels_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Repacked weights are kept as for a user, but not among the user's: also by the programs that tests start.

    No device is tuned, which would take seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYLLAMA_PANELS", str(tmp_path_factory.mktemp("panels")))
        patch.setenv("TINYLLAMA_TUNING", "")
        yield


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests start must hear of Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: machines that run tests are shared, and a slow example is no failure. Every run draws the same cases: what fails
# once fails again. `--hypothesis-profile default` draws others.
settings.register_profile("tinyllama", deadline=None, derandomize=True)
settings.load_profile("tinyllama")
