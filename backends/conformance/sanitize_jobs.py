"""What runs on the simulated device: every op of the launch table, in shapes that end within a tile.

Oclgrind interprets, some million instructions a second. So shapes are as small as they can be while a kernel still meets its
last, partial tile: of rows, of tokens, of positions, of a head's components.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ops.blocks import FORMATS
from ops.errors import OptionError
from ops.op import OPS, Op

from ..device.launch import TABLE
from ..device.panels import LAYOUTS
from ..device.products import MULTIPLIED
from .case import Case
from .select import is_meant
from .strategies import dtypes

# Two tokens take the kernels of decoding: products row by row (groups of 4 rows), attention query by query.
# Nine take those of a prompt: tiles of 8 rows and tokens, or of 64; 4 or 8 queries together, keys in tiles of 64.
FEW = {
    "T": 2, "U": 2, "V": 3, "n": 37, "m": 5, "a": 5, "b": 3, "c": 2, "h": 4, "k": 2, "d": 6, "e": 6, "r": 3, "S": 5, "C": 7,
}  # fmt: skip
MANY = {
    "T": 9, "U": 3, "V": 5, "n": 50, "m": 19, "a": 19, "b": 9, "c": 5, "h": 2, "k": 1, "d": 18, "e": 18, "r": 5, "S": 66,
    "C": 68,
}  # fmt: skip
ONE = {**FEW, "T": 1, "S": 37, "C": 40}  # what has kernels of its own for a single token: x rounded on the way, keys in parts
OF_ONE = {"attention", *(op.name for op in MULTIPLIED)}
ATTRS = ({"eps": 1e-5, "scale": 0.3, "neox": False, "k": 2}, {"eps": 1e-5, "scale": 0.3, "neox": True, "k": 37})
SMALL_GROUP, LARGE_GROUP = 8, 256  # work-items: tiles of 8 rows and tokens, and of 64


@dataclass(frozen=True)
class Job:
    """A case, run by the kernels made for a "cpu" or a "gpu" whose work-groups have at most `group_size` work-items.

    A simulated CPU lacks a real one's instructions: its products of integers are in portable C; precise: those of floats.
    """

    case: Case
    features: str
    group_size: int = SMALL_GROUP
    precise: bool = False

    @property
    def name(self) -> str:
        """Of the check whose case this is, as `-k` selects it: op-matmul-Q4_0."""
        op, case = OPS[self.case.op], self.case
        takes_weight = any(o.dtype == "weight" for o in op.inputs)
        return f"op-{op.name}-{case.format if takes_weight else {'float32': 'f32', 'float16': 'f16'}[case.kv]}"


def jobs() -> list[Job]:
    """All of them, for both kinds of kernels."""
    made = [Job(case, features) for features in ("cpu", "gpu") for op in _ops() for case in _cases(op)]
    floats = [replace(job, precise=True) for job in made if job.features == "cpu" and job.case.format in LAYOUTS]
    # large groups once too; for their tiles a simulated device takes seconds
    wide = [Job(Case(op.name, *_sizes(op, FEW, "F32", 0), start=3), "gpu", LARGE_GROUP) for op in _ops()]
    tile = Job(Case("matmul", {"T": 5, "n": 17, "m": 3}), "gpu", LARGE_GROUP)
    return [tile, *made, *floats, *wide]  # the slow one first, so that nobody waits for it in the end


def selected_jobs(expression: str | None, features: str | None) -> list[Job]:
    """Those that `-k` and `--device-features` leave. OptionError: none."""
    found = [
        job for job in jobs() if (expression is None or is_meant(job.name, expression)) and features in (None, job.features)
    ]
    if not found:
        raise OptionError("no case is left by -k and --device-features: names are op-matmul-Q4_0, ..., features cpu and gpu")
    return found


def _ops() -> list[Op]:
    return [OPS[name] for name in TABLE]


def _cases(op: Op) -> Iterator[Case]:
    """Few and many tokens, by the kernel and through a plan; every dtype, of which the first takes each way."""
    for i, dtype in enumerate(dtypes(op)):
        kind: dict[str, Any] = {"format": dtype} if dtype in FORMATS else {"kv": {"f32": "float32", "f16": "float16"}[dtype]}
        few, many = _sizes(op, FEW, dtype, 0), _sizes(op, MANY, dtype, 1)
        yield Case(op.name, *few, start=FEW["S"] - FEW["T"], **kind)
        yield Case(op.name, *many, start=MANY["S"] - MANY["T"], path="plan", **kind)
        if op.name in OF_ONE:
            yield Case(op.name, *_sizes(op, ONE, dtype, 0), start=ONE["S"] - ONE["T"], **kind)
        if op.name == "top_k":  # with lists to be merged
            yield Case(op.name, {"T": 1, "n": 1100}, {"k": 3}, path="plan")
        if i == 0:
            yield Case(op.name, *few, start=FEW["S"] - FEW["T"], path="plan", **kind)
            yield Case(op.name, *many, start=MANY["S"] - MANY["T"], **kind)


def _sizes(op: Op, of: Mapping[str, int], dtype: str, which: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes and attributes. A row of quantised weights has two blocks, or one if a block is 256 weights and tokens are many."""
    sizes = {letter: of[letter] for o in op.inputs for letter in o.dims}
    block = FORMATS[dtype].block_size if dtype in FORMATS else 1
    if block > 1:
        sizes["n"] = block if block > 32 and which else 2 * block
        if which:
            sizes |= dict.fromkeys({"m", "a", "b", "c", "V"} & sizes.keys(), 5)
    return sizes, {name: ATTRS[which][name] for name in op.attrs}
