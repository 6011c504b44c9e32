"""Laws that hold for every op there is, whatever it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ops.op import OPS, Op

from ..base import Backend
from .apply import apply
from .case import Case
from .check import CHECKS, Check, Draws
from .strategies import cases, dtypes
from .trial import assert_same

EXAMPLES = 20  # of each op


def declare() -> None:
    """A check `law-same-bits-NAME` for every op that has none yet."""
    for op in list(OPS.values()):
        name = f"law-same-bits-{op.name}"
        if name not in CHECKS:
            CHECKS[name] = _same_bits(name, op)


def _same_bits(name: str, op: Op) -> Check:
    def run(backend: Backend, data: Draws) -> None:
        kinds = dtypes(op, backend.kv_dtypes)
        of_kind = [cases(op, data.draw(st.sampled_from(kinds), label="dtype")) for _ in range(2)]
        case, other = (data.draw(strategy, label="case") for strategy in of_kind)
        first = _outputs(backend, case)
        for told in ("again", "after other work"):
            for now, then in zip(_outputs(backend, case), first, strict=True):
                assert_same(now, then, f"{case}, {told}")
            _outputs(backend, other)

    told = (
        f"{op.name} of the same operands gives the same bits, again and after other work: nothing depends on chance, on what "
        "lies in memory, or on what was computed before."
    )
    return Check(name, (op.name,), told, run, examples=EXAMPLES)


def _outputs(backend: Backend, case: Case) -> list[NDArray[Any]]:
    op = OPS[case.op]
    with np.errstate(all="ignore"):
        return apply(backend, op, case.operands(), case.attrs, case.path).outputs
