"""What a mutant is: a backend, and what it is wrong about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.base import Backend
from backends.conformance.check import Check


@dataclass(frozen=True)
class Mutant:
    backend: type[Backend]
    about: frozenset[str]  # ops; or the first words of checks' names, such as "contract" or "run-memory"
    dtype: str  # the only one that is wrong; "" for all

    def concerns(self, check: Check) -> bool:
        """Only these checks are run: the others cannot see what is wrong, and would take their time."""
        if self.dtype and check.dtype not in ("", self.dtype):
            return False
        return bool(self.about & set(check.ops)) or check.name.startswith(tuple(self.about))


MUTANTS: dict[str, Mutant] = {}


def wrong(*about: str, dtype: str = "") -> Callable[[type[Backend]], type[Backend]]:
    """Declare a mutant: a decorator above the class of the backend."""

    def declare(backend: type[Backend]) -> type[Backend]:
        MUTANTS[backend.__name__] = Mutant(backend, frozenset(about), dtype)
        return backend

    return declare
