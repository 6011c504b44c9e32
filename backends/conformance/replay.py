"""Any check, run again with the same draws: what a failure prints so that it can be seen again without hypothesis' help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from hypothesis.errors import HypothesisException

from ..base import Backend
from .check import Check, Draws
from .judge import AGAIN, snippet

MADE_OF = {  # what the repr of a drawn value may need
    "Case(": "from backends.conformance.case import Case",
    "Decoder(": "from backends.conformance.decoder import Decoder",
}


class _Recorder:
    """Draws as hypothesis does, and remembers what it gave."""

    def __init__(self, data: Draws) -> None:
        self._data = data
        self.drawn: list[Any] = []

    def draw(self, strategy: Any, label: Any = None) -> Any:
        value = self._data.draw(strategy, label=label)
        self.drawn.append(value)
        return value


class _Replayed:
    """Draws what was drawn before."""

    def __init__(self, drawn: Sequence[Any]) -> None:
        self._left = iter(drawn)

    def draw(self, strategy: Any, label: Any = None) -> Any:
        return next(self._left)


def attempt(backend: Backend, check: Check, data: Draws) -> None:
    """Run a check; a failure that does not tell how to see it again is given the code for it."""
    recorder = _Recorder(data)
    try:
        check.run(backend, cast(Draws, recorder))
    except HypothesisException:  # a draw that is given up
        raise
    except Exception as error:
        if AGAIN in str(error):
            raise
        wrong = isinstance(error, AssertionError)
        told = str(error) if wrong else f"raised {type(error).__name__}: {error}"
        shown = repr(recorder.drawn)
        imports = [line for word, line in MADE_OF.items() if word in shown]
        imports.append("from backends.conformance.replay import replay")
        again = snippet(backend, imports, f"replay(backend, {check.name!r}, {shown})")
        raise AssertionError(f"{check.name} on backend '{backend.name}': {told}\n\n{again}") from (None if wrong else error)


def replay(backend: Backend, name: str, drawn: Sequence[Any]) -> None:
    """Run the check of this name with these draws. AssertionError: it fails."""
    from .suite import checks  # here: they need all that is above

    checks()[name].run(backend, cast(Draws, _Replayed(drawn)))
