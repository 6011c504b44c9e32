"""What the kit is made of: checks, each a function that draws cases and asserts something about a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from ..base import Backend
from .rounding import precise

Draws = st.DataObject  # data.draw(strategy): hypothesis' source of cases, so that a failing one shrinks


@dataclass(frozen=True)
class Check:
    """`run` raises AssertionError with a message that tells what is wrong and how to see it again."""

    name: str  # as pytest shows it: op-matmul-Q4_0, law-softmax-shift
    ops: tuple[str, ...]  # the ops it is about; none: the contract itself
    told: str  # one sentence: what must hold
    run: Callable[[Backend, Draws], None]
    dtype: str = ""  # of the cases of an op: a format of weights, or what floats are kept in
    examples: int | None = None  # no more than these, of a check that takes long


CHECKS: dict[str, Check] = {}  # every check by its name


def check(
    name: str, *ops: str, dtype: str = "", examples: int | None = None, as_it_is: bool = False
) -> Callable[[Callable[[Backend, Draws], None]], Check]:
    """Declare a check: a decorator above its function, whose docstring says what must hold, and why.

    as_it_is: of a backend that rounds activations to 8 bits, too; else of one that was told not to, with whose results the
    exact ones can be compared.
    """

    def declare(run: Callable[[Backend, Draws], None]) -> Check:
        def run_precisely(backend: Backend, data: Draws) -> None:
            run(precise(backend), data)

        told = " ".join((run.__doc__ or "").split())
        CHECKS[name] = made = Check(name, ops, told, run if as_it_is else run_precisely, dtype, examples)
        return made

    return declare
