"""One check for each op and dtype: whatever is in OPS, each format of its weights, each dtype of its cache."""

from __future__ import annotations

from ops.blocks import FORMATS
from ops.op import OPS, Op

from ..base import Backend
from .check import CHECKS, Check, Draws
from .judge import check_case
from .strategies import cases, dtypes

# Cases of a format that differs from another one in the type of its scales only, such as Q4_0_F32, which GGUF does not know.
SECOND_FORM = 30


def declare() -> None:
    """A check `op-NAME-DTYPE` for every op that has none yet."""
    for op in list(OPS.values()):
        for dtype in dtypes(op):
            name = f"op-{op.name}-{dtype}"
            if name not in CHECKS:
                CHECKS[name] = _check(name, op, dtype)


def _check(name: str, op: Op, dtype: str) -> Check:
    def run(backend: Backend, data: Draws) -> None:
        check_case(backend, data.draw(cases(op, dtype), label="case"))

    told = f"{op.name} agrees with its formula in float64, gives the right shape and dtype, and changes nothing else."
    is_second = dtype in FORMATS and FORMATS[dtype].ggml_type is None
    return Check(name, (op.name,), told, run, dtype, SECOND_FORM if is_second else None)
