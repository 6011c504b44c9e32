"""Does what a backend computed agree with the truth? If not, an AssertionError that tells where, and how to see it again."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.op import OPS, Op, Operand
from ops.tensor import Tensor

from ..base import Backend, Options
from ..registry import known_backends
from . import rounding
from .apply import Applied, apply
from .case import Case
from .tolerances import ELEMENT, SMALLEST, Tolerance, U, in_terms, tolerance

Array = NDArray[Any]


@dataclass
class Tally:
    """What the cases of a check came to."""

    runs: int = 0  # examples drawn
    cases: int = 0  # of them held against the truth
    nmse: float = 0.0  # the worst
    limit: float = 0.0  # for that case
    where: Case | None = None

    def add(self, case: Case, nmse: float, limit: float) -> None:
        self.cases += 1
        if nmse > self.nmse or self.where is None:
            self.nmse, self.limit, self.where = nmse, limit, case


FOLDERS = ("panels_folder", "tuning_file")  # of the user: they change no result
AGAIN = "To see it again, in python:"

TALLY: ContextVar[Tally | None] = ContextVar("tally", default=None)  # of the check that runs, where someone counts


class Wrong(AssertionError):
    """What is wrong, in a line or a few."""


def check_case(backend: Backend, case: Case) -> None:
    """Run one case, and hold all of it against the formula in float64: outputs, what was written, what may not change."""
    op, operands = OPS[case.op], case.operands()
    try:
        try:
            with np.errstate(all="ignore"):
                applied = apply(backend, op, operands, case.attrs, case.path)
        except Exception as error:
            raise Wrong(f"raised {type(error).__name__}: {error}") from error
        _judge(backend, case, operands, applied)
    except Wrong as wrong:
        imports = ["from backends.conformance.case import Case", "from backends.conformance.judge import check_case"]
        again = snippet(backend, imports, f"check_case(backend, {case!r})")
        through = "a plan" if case.path == "plan" else "the kernel"
        told = f"{case.op} through {through} of backend '{backend.name}': {wrong}\n\n{again}"
        raise AssertionError(told) from wrong.__cause__


def snippet(backend: Backend, imports: list[str], call: str) -> str:
    """Python that runs a case again, ready to be pasted."""
    made = backend_call(backend)
    lines = [
        "from backends import get_backend",
        *(["from backends.base import Options"] if "Options(" in made else []),
        *imports,
    ]
    return "\n".join([AGAIN, "", *lines, "", f"backend = get_backend({made})", f"{call}", ""])


def backend_call(backend: Backend) -> str:
    """The arguments of get_backend that make this backend again."""
    spec = f"{type(backend).__module__}:{type(backend).__qualname__}"
    module, _, attribute = known_backends().get(backend.name, "").partition(":")
    name = backend.name if getattr(sys.modules.get(module), attribute, None) is type(backend) else spec
    given = [f"{k}={v!r}" for k, v in vars(backend.options).items() if k not in FOLDERS and v != getattr(Options(), k)]
    return f"{name!r}" + (f", Options({', '.join(given)})" if given else "")


def _judge(backend: Backend, case: Case, operands: list[Array | Tensor], applied: Applied) -> None:
    op = OPS[case.op]
    truths, written = case.truth()
    outputs = list(zip(op.outputs, applied.outputs, truths, strict=True))
    for output, ours, truth in outputs:
        if ours.shape != truth.shape:
            raise Wrong(f"{_told(op, output)} has the shape {list(ours.shape)}, expected {list(truth.shape)}")
        if output.dtype == "int":  # of any width
            right, kind = ours.dtype.kind == "i", "integers"
        else:
            right, kind = ours.dtype == case.dtype(output), str(case.dtype(output))
        if not right:
            raise Wrong(f"{_told(op, output)} is {ours.dtype}, expected {kind}")
    for name, expected in written.items():
        shown = _shown(op, name, applied)
        rounded = np.concatenate([shown, expected[len(shown) :].astype(case.kv)])
        _same_bits(f"{name}, which it writes", applied.written[name], rounded)
    before = dict(zip((o.name for o in op.inputs), case.operands(), strict=True))
    for name, after in applied.read.items():
        _same_bits(f"its operand {name}, which may not change", after, np.asarray(before[name]))
    for operand, x in zip(op.inputs, operands, strict=True):
        was = before[operand.name]
        if isinstance(x, Tensor) and isinstance(was, Tensor) and not np.array_equal(x.data[:], was.data[:]):
            raise Wrong(f"the bytes of its operand {operand.name} have changed")
    for output in op.outputs:
        if output.name in applied.shared and output.name not in op.views:
            raise Wrong(f"{_told(op, output)} lies in the memory of its operand {applied.shared[output.name]}")
    blocks = rounding.rounded_by(backend, op, operands)
    found = [_compared(case, output, blocks, operands, ours, truth) for output, ours, truth in outputs]
    worst = max(found, key=lambda error: error.nmse / (error.limit or 1.0))
    if (tally := TALLY.get()) is not None:
        tally.add(case, worst.nmse, worst.limit)  # also a wrong case, so that a table shows by how much it is wrong
    for error in found:
        if error.told:
            raise Wrong(error.told)


def _told(op: Op, output: Operand) -> str:
    return "its output" if len(op.outputs) == 1 else f"its output {output.name}"


def _shown(op: Op, written: str, applied: Applied) -> Array:
    """Of an operand that is written, the rows that an output shows, if these were computed: they are judged there."""
    for output, ours in zip(op.outputs, applied.outputs, strict=True):
        if op.views.get(output.name) == written and not tolerance(op, output).exact:
            return ours
    return applied.written[written][:0]


@dataclass(frozen=True)
class Error:
    """Of one output. `told`: what is wrong with it, if anything is."""

    nmse: float = 0.0
    limit: float = 0.0
    told: str = ""


def _compared(
    case: Case, output: Operand, blocks: dict[str, int], operands: list[Array | Tensor], ours: Array, truth: Array
) -> Error:
    limits, what = tolerance(OPS[case.op], output), _told(OPS[case.op], output)
    if not limits.exact:
        off = rounding.off(OPS[case.op], output, blocks, case.operands_in_double(), dict(case.attrs))
        return _close(case, limits, off, what, operands, ours, truth)
    with np.errstate(over="ignore"):
        _same_bits(what, ours, truth.astype(ours.dtype))
    return Error()


def _same_bits(what: str, ours: Array, truth: Array) -> None:
    """Equal, number by number; NaN is NaN."""
    if ours.shape != truth.shape:
        raise Wrong(f"{what} has the shape {list(ours.shape)}, expected {list(truth.shape)}")
    differs = (ours != truth) & ~((ours != ours) & (truth != truth))
    if differs.any():
        at = tuple(int(i) for i in np.argwhere(differs)[0])
        raise Wrong(f"{what} is wrong in {differs.sum()} of {truth.size} places, first at {list(at)}: "
                    f"expected {truth[at]:.9g}, got {ours[at]:.9g}")  # fmt: skip


def _close(
    case: Case,
    limits: Tolerance,
    off: rounding.Off | None,
    what: str,
    operands: list[Array | Tensor],
    ours: Array,
    truth: Array,
) -> Error:
    """NMSE, and each element, within the limit. What was rounded to float16 may lie half of its steps away from the truth.

    off: what rounding x to 8 bits may add to that.
    """
    truth = np.where(np.abs(truth) > np.finfo(ours.dtype).max, np.copysign(np.inf, truth), truth)  # as that dtype has it
    finite = np.isfinite(truth)
    strange = np.isfinite(ours) != finite
    strange |= ~finite & (ours != truth) & ~np.isnan(truth)
    if strange.any():
        at = tuple(int(i) for i in np.argwhere(strange)[0])
        raise Wrong(f"{what} is wrong at {list(at)}: expected {truth[at]:.9g}, got {ours[at]:.9g}")
    doubles = case.operands_in_double()
    read = [x for x, o in zip(doubles, OPS[case.op].inputs, strict=True) if x.dtype.kind == "f" and not o.written]
    largest = max((np.abs(x[np.isfinite(x)]).max(initial=1.0) for x in read), default=1.0)
    sized = [in_terms(d, x) if isinstance(x, Tensor) else d for d, x in zip(doubles, operands, strict=True)]
    with np.errstate(all="ignore"):
        size = limits.size(sized, dict(case.attrs), truth)
    size = np.where(finite, np.nan_to_num(size), 0) + SMALLEST / U * largest
    error = np.abs(np.where(finite, ours.astype(np.float64) - np.where(finite, truth, 0), 0))
    if ours.dtype == np.float16:
        steps = np.where(finite, np.spacing(np.abs(ours)), 0).astype(np.float64)
        error = np.maximum(error - steps / 2, 0)
    roundings, drift = limits.roundings(dict(case.sizes)), limits.drift(dict(case.sizes))
    nmse, limit = float(np.square(error).sum() / np.square(size).sum()), ((roundings + drift) * U) ** 2
    reason, allowed = f"{roundings + drift:.0f} roundings of 2^-24: {limits.reason}", (ELEMENT * roundings + drift) * U * size
    if off:
        limit += rounding.limit(len(truth)) * float(off[1].sum() / np.square(size).sum())
        reason, allowed = f"{reason}; x rounded to 8 bits", allowed + (1 + 1e-3) * off[0]  # d itself is a float32
    over = error / allowed
    at = tuple(int(i) for i in np.unravel_index(np.argmax(over), over.shape))
    if nmse <= limit and over[at] <= 1:
        return Error(nmse, limit)
    told = (
        f"{what} is wrong, worst at {list(at)}: expected {truth[at]:.9g}, got {ours[at]:.9g}, "
        f"{over[at]:.3g} times what an element may be off\n"
        f"NMSE {nmse:.2e}, limit {limit:.2e} ({reason})"
    )
    return Error(nmse, limit, told)
