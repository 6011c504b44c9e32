"""Products on a CPU that multiplies integers: weights in panels, x rounded to bytes as llama.cpp has it, block by block.

Up to three weights that read the same x are multiplied in one launch, with the norm before them and what follows in the same
kernel. Which instructions it uses, `Limits.integers` tells; docs/from-readable-to-fast.md tells what each step has brought.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from .array import DeviceArray, PanelWeight, Part
from .launch import Launch
from .panels import ROWS, panel_bytes
from .runtime import CANDIDATES, Limits, Memory

STRIDE = 12  # ints that a block of 32 columns of one token takes: 8 of columns, a scale, three that are made of its sum
WIDE = 16  # and so many more where x is wanted in 16 bits too
SHARE = 1 << 16  # weights for a work-group, where there are many tokens: they stay in its innermost caches
MANY = 64  # tokens, from which on a larger tile is worth the places that the last one leaves empty
TILE = 4  # tokens of a tile where there are fewer
Epilogue = Literal["", "add", "swiglu"]
EPILOGUES: dict[Epilogue, int] = {"": 0, "add": 1, "swiglu": 2}  # what follows a product, as kernels count it


@dataclass(frozen=True)
class Before:
    """What is done to x first: multiplied by a norm's weight, after division by the root of its mean square."""

    norm: DeviceArray
    eps: float


def room_bytes(limits: Limits, n_tokens: int, n: int) -> int:
    """Of x rounded: once for each work-group that rounds the row of a single token, or in tiles of many.

    It is enough for any tuning, since another one may be found while a plan keeps this room, and for weights of any layout.
    """
    groups, tokens = max(CANDIDATES["groups"]), max(CANDIDATES["tokens"])
    return max(groups * limits.cores, n_tokens + tokens - 1) * 4 * (STRIDE + _wide(limits)) * (n // 32)


def products(
    limits: Limits,
    x: DeviceArray,
    weights: Sequence[PanelWeight],
    ys: Sequence[DeviceArray],
    room: Memory,
    *,
    before: Before | None = None,
    residual: DeviceArray | None = None,
    epilogue: Epilogue = "",
) -> Iterator[Launch]:
    """y = x W^T for each weight; with "add" residual + x W^T, with "swiglu" silu(x W0^T) * x W1^T in ys[0].

    x is rounded by as many columns as a layout has in a block or super-block, which must be the same for all weights.
    """
    n_tokens, n = x.shape
    (width,) = {weight.layout.columns for weight in weights}
    stride = STRIDE + (_wide(limits) if any(weight.layout.bits == 8 for weight in weights) else 0)
    tokens = tile(limits, n_tokens)
    few = limits.tuning.groups * limits.cores  # work-groups for a product that is over soon
    norm: tuple[Memory, int, float] = (before.norm.memory, 1, before.eps) if before else (x.memory, 0, 0.0)
    defines: dict[str, int | str] = {
        **{"LANES": 1, "TOKENS": tokens, "STRIDE": STRIDE, "WIDE_INTS": _wide(limits)},
        f"INT8_{limits.integers.upper()}": 1,
    }
    if tokens > 1:
        yield Launch(
            source="product_int8.c",
            kernel="round_int8",
            args=(x.memory, norm[0], room, n, n_tokens, width, stride, *norm[1:]),
            groups=(-(-n_tokens // tokens),),
            group_size=1,
            defines=defines,
        )
    for three in _launched_together(weights, ys, epilogue):
        n_panels = sum(-(-part.n_rows // ROWS) for _, part, _ in three) // (2 if epilogue == "swiglu" else 1)
        n_groups = -(-n_panels * ROWS * n // SHARE)
        share = -(-n_panels // (few if n_tokens <= tokens else max(n_groups, few)))
        told = [_told(weight, part, y) for weight, part, y in three]
        told += [told[0][:2] + (0,) * 6] * (3 - len(told))  # a weight without panels
        yield Launch(
            source="product_int8.c",
            kernel="product_int8",
            args=(
                *(x.memory, norm[0], (residual or x).memory, room),
                *chain.from_iterable(told),
                *(n, n_tokens, width, stride, share, *norm[1:], EPILOGUES[epilogue]),
            ),
            groups=(-(-n_panels // share),),
            group_size=1,
            defines=defines,
        )


def tile(limits: Limits, n_tokens: int) -> int:
    """Tokens that go through a panel together. Two in a larger tile would take longer than one by one."""
    if n_tokens <= 2:
        return n_tokens
    leaves_out_empty_places = limits.integers == "avx2"  # its tile goes through in parts of four tokens
    return TILE if n_tokens < MANY and not leaves_out_empty_places else limits.tuning.tokens


Set = tuple[PanelWeight, Part, DeviceArray]


def _launched_together(weights: Sequence[PanelWeight], ys: Sequence[DeviceArray], epilogue: str) -> Iterator[list[Set]]:
    """Three at a time; of a gated unit the two that belong together, whose parts have the same rows."""
    if epilogue == "swiglu":
        gate, up = weights
        yield from ([(gate, a, ys[0]), (up, b, ys[0])] for a, b in zip(gate.parts, up.parts, strict=True))
        return
    sets = [(weight, part, y) for weight, y in zip(weights, ys, strict=True) for part in weight.parts]
    yield from (sets[i : i + 3] for i in range(0, len(sets), 3))


def _told(weight: PanelWeight, part: Part, y: DeviceArray) -> tuple[Memory | int, ...]:
    m, n = weight.shape
    return (
        *(part.memory, y.memory, weight.layout.number, -(-part.n_rows // ROWS), panel_bytes(weight.layout, n)),
        *(part.n_rows, part.first_row, m),
    )


def _wide(limits: Limits) -> int:
    """AVX2 has no product of bytes whose sums hold a q of 8 bits: there it is multiplied by x as numbers of 16 bits."""
    return WIDE if limits.integers == "avx2" else 0
