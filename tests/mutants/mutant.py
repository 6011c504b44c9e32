"""What a mutant is: a backend, and what it is wrong about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from backends.base import Backend
from backends.conformance.check import Check


@dataclass(frozen=True)
class Mutant:
    backend: type[Backend]
    about: tuple[str, ...]  # ops, or the first words of checks' names such as "contract-upload": the likeliest to see it first
    dtype: str  # the only one that is wrong; "" for all

    def concerned(self, checks: Iterable[Check]) -> list[Check]:
        """The checks of what is wrong, and no others: these could not see it, and would take their time."""
        mine = [c for c in checks if not self.dtype or c.dtype in ("", self.dtype)]
        found = {
            c.name: c
            for word in self.about
            for c in sorted(mine, key=lambda c: len(c.ops))
            if word in c.ops or c.name.startswith(word)
        }
        return list(found.values())


MUTANTS: dict[str, Mutant] = {}


def wrong(*about: str, dtype: str = "") -> Callable[[type[Backend]], type[Backend]]:
    """Declare a mutant: a decorator above the class of the backend."""

    def declare(backend: type[Backend]) -> type[Backend]:
        MUTANTS[backend.__name__] = Mutant(backend, about, dtype)
        return backend

    return declare
