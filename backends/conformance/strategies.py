"""Cases of an op, drawn from its signature: what each letter, attribute and operand may be."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ops.blocks import FORMATS
from ops.op import Op

from .arrays import LAYOUTS, MASKED, SHIFTED, VALUES
from .blocks import SCALES
from .case import Case, is_cache

# Each list begins with what a failing case shrinks to. Sizes: one, odd, prime, at and beside the tiles of kernels.
SIZES = (
    1, 2, 3, 5, 7, 8, 13, 16, 31, 32, 33, 48, 63, 64, 65, 96, 97, 100, 127, 128, 129, 160, 192, 255, 256, 257, 300,
    515, 1030, 1536, 2050,
)  # fmt: skip
TOKENS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 32, 33, 64, 65, 97, 130)
HEAD_DIMS = (64, 32, 2, 6, 40, 80, 96, 100, 112, 128, 192, 256)
VALUE_DIMS = (64, 32, 2, 40, 128, 256)  # fewer, since a device may compile a kernel for each pair of sizes
LETTERS = {
    "T": (*TOKENS, 512),
    "U": (1, 2, 3, 5, 8, 17, 40),
    "V": (1, 2, 3, 7, 31, 32, 33, 100, 257),
    "d": HEAD_DIMS,
    "e": VALUE_DIMS,
    "h": (1, 2, 3, 4, 6, 7, 8, 9, 12, 14, 16),
    "k": (1, 2, 3, 4, 5, 8),
}
RATIOS = {"h": (1, 2, 3, 4, 7, 8)}  # query heads to a key head; where a letter is a multiple of another
STARTS = (0, 1, 2, 3, 5, 7, 15, 16, 31, 32, 33, 40, 63, 64, 65, 100, 127, 128, 200, 255, 256, 300, 511, 1030, 1500, 2047)
FAR_STARTS = (*STARTS, 4095, 8192, 10_000, 32_768, 65_536, 100_000, 131_071, 1_000_000)  # no cache is needed
SPARE = (0, 1, 2, 7, 32)  # places of a cache that are not used yet
BLOCKS = (1, 2, 3, 4, 5)  # in a row of a quantised weight
MAGNITUDES = (1.0, 1e-6, 1e-3, 0.1, 3.0, 10.0, 30.0, 100.0, 1e4)
SHARPNESS = (1.0, 0.1, 3.0, 10.0, 100.0, 3000.0)  # of scores after `scale`
ATTRS: dict[str, tuple[Any, ...]] = {
    "eps": (1e-5, 1e-6, 1e-3, 0.1), "neox": (False, True), "h": (1, 2, 3, 4, 7, 8, 9, 32), "scale": SHARPNESS,
    "k": (1, 2, 3, 7, 40, 64, 128, 257, 300),
}  # fmt: skip
MORE_VALUES = {"softmax": (MASKED,), "top_k": (MASKED,), "layernorm": (SHIFTED,)}
BY_TYPE: dict[str, tuple[Any, ...]] = {"float": (1.0, 0.3, -2.0), "bool": (False, True), "int": (1, 2, 3, 7)}
KV = {"float32": "f32", "float16": "f16"}  # dtypes of caches, as checks are named after them
BEFORE = {"e": "d", "b": "a", "c": "b"}  # products with these sizes come one after the other: their work is not multiplied
WORK = 3_000_000  # the product of all sizes: what a case may take
SEEN_WORK = 60_000_000  # with the positions that each token sees


def dtypes(op: Op, kv_dtypes: Sequence[str] = tuple(KV)) -> list[str]:
    """What an op is tried with: formats of its weights, dtypes of its caches, or float32 alone."""
    if any(o.dtype == "weight" for o in op.inputs):
        return list(FORMATS)
    return [KV[dtype] for dtype in kv_dtypes] if any(map(is_cache, op.inputs)) else ["f32"]


@st.composite
def cases(draw: st.DrawFn, /, op: Op, dtype: str = "f32", **fixed: Any) -> Case:
    """A case of this op with a dtype of `dtypes(op)`. `fixed` are fields of Case, or sizes by their letter, that are given."""
    letters = {d for o in op.inputs for d in o.dims}
    has_cache = any(map(is_cache, op.inputs))
    has_positions = any(o.name == "positions" for o in op.inputs)
    bounded = has_cache or "S" in letters  # then positions are places of a cache
    given = {k: v for k, v in fixed.items() if k in letters | set(op.attrs)}
    rest = {k: v for k, v in fixed.items() if k not in given}
    case: dict[str, Any] = {"op": op.name, "magnitude": draw(st.sampled_from(MAGNITUDES)), "format": "F32"}
    if dtype in FORMATS:
        case |= {"format": dtype, "scales": draw(st.sampled_from(SCALES))}
    if has_cache:
        case["kv"] = {"f32": "float32", "f16": "float16"}.get(dtype, "float32")
    if has_cache or has_positions:
        case["start"] = draw(st.sampled_from(STARTS if bounded else FAR_STARTS))
    case |= {name: value for name, value in rest.items() if name in ("magnitude", "format", "kv", "start")}
    sizes = draw(_sizes(op, letters, case, given, tied=has_cache or (has_positions and "S" in letters)))
    case |= {
        "sizes": {letter: sizes[letter] for letter in sorted(letters)},
        "attrs": {name: given.get(name, sizes.get(name)) for name in op.attrs if name in given or name in sizes},
        "values": draw(st.sampled_from((*VALUES, *MORE_VALUES.get(op.name, ())))),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "ints": draw(st.sampled_from(("int64", "int32"))),
        "path": draw(st.sampled_from(("kernel", "plan"))),
        "scattered": has_positions and not bounded and draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }
    for name in op.attrs:
        if name not in case["attrs"]:
            case["attrs"][name] = draw(_attr(op, name, case))
    return Case(**(case | rest))


@st.composite
def _sizes(
    draw: st.DrawFn, op: Op, letters: set[str], case: dict[str, Any], given: dict[str, Any], *, tied: bool
) -> dict[str, int]:
    """Of each letter, and of attributes that are sizes; as `where` wants them, and no more work than WORK."""
    sizes: dict[str, int] = {}
    work = 1
    block = FORMATS[case["format"]].block_size
    multiples = dict(re.findall(r"(\w+) % (\w+) == 0", op.where_text))
    rows = {o.dims[-1] for o in op.inputs if o.dtype == "weight"}  # whose length is cut into blocks
    told = ",".join([op.where_text, *(d for output in op.outputs for d in output.dims)])
    attrs = {a for a in op.attrs if re.search(rf"\b{a}\b", told)}
    wanted = letters | attrs
    if tied:  # S = start + T are seen, C places are there
        wanted |= {"T"}
    # what is chosen first may be large, and little work is left for the rest: half of the time that is heads, else tokens
    heads_first = "k" in letters and draw(st.booleans())
    sequence = "khdeTVUnm" if heads_first else "TVUkhnmde"
    order = sorted(
        wanted - {"S", "C"} if tied else wanted,
        key=lambda x: (x in multiples and not heads_first, sequence.find(x) % 10, x),
    )

    def choose(letter: str, options: tuple[int, ...]) -> int:
        if letter in given:
            return int(given[letter])
        # heads that were chosen first leave room for a long step, or for one that sees far
        most = min(WORK, SEEN_WORK / (case["start"] + 1)) if letter == "T" and tied and heads_first else WORK
        fits = [x for x in options if work * x <= most and _holds(op, {**sizes, letter: x})]
        return draw(st.sampled_from(fits or [x for x in options if _holds(op, {**sizes, letter: x})][:1] or [1]))

    for letter in order:
        options = ATTRS.get(letter, (1, 2, 3)) if letter in attrs else LETTERS.get(letter, SIZES)
        if letter == "e" and "d" in sizes:  # values are as long as keys, as a rule
            options = (sizes["d"],) * len(VALUE_DIMS) + VALUE_DIMS
        work //= sizes.get(BEFORE.get(letter, ""), 1)
        if letter in multiples and multiples[letter] in sizes:
            of = sizes[multiples[letter]]
            options = tuple(of * ratio for ratio in RATIOS.get(letter, HEAD_DIMS))
        elif letter in rows and block > 1:
            options = tuple(block * n for n in (BLOCKS if block > 32 else (*BLOCKS, 8, 9)))
        elif (
            op.where is not None and letter in op.where.co_names and {*op.where.co_names} <= {letter, *sizes}
        ):  # a bound: often it is reached
            largest = max((n for n in range(1, 300) if _holds(op, {**sizes, letter: n})), default=1)
            options = (largest, *options)
        sizes[letter] = choose(letter, options)
        work *= sizes[letter]
        if letter == "T" and tied:
            case["start"] = int(given.get("S", case["start"] + sizes["T"])) - sizes["T"]
            sizes["S"] = case["start"] + sizes["T"]
            work *= sizes["S"]
    if "C" in letters:
        sizes["C"] = int(given.get("C", sizes["S"] + draw(st.sampled_from(SPARE))))
    return sizes


def _holds(op: Op, sizes: dict[str, int]) -> bool:
    """Does `where` hold, as far as the sizes are known?"""
    return op.where is None or not set(op.where.co_names) <= set(sizes) or bool(eval(op.where, {}, dict(sizes)))


def _attr(op: Op, name: str, case: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Known by its name, or by its type in the formula."""
    if name == "scale":  # scores of all magnitudes, those of softmax's interest above all
        sizes, magnitude = case["sizes"], case["magnitude"]
        unit = magnitude**2 * sizes["d"] ** 0.5 if "d" in sizes else magnitude
        return st.sampled_from(SHARPNESS).map(lambda sharp: float(f"{sharp / unit:.4g}"))
    annotation = inspect.signature(op.formula).parameters[name].annotation
    return st.sampled_from(ATTRS.get(name) or BY_TYPE.get(getattr(annotation, "__name__", annotation), (1,)))
