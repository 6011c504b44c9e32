"""Products of floats: weights stay in the blocks of their file, and are unpacked where they are used.

A weight may lie in several buffers, each with some of its rows: they are written to these rows' columns of y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from .array import DeviceArray, DeviceWeight, Part
from .launch import TABLE, Launch, lanes
from .products_int8 import EPILOGUES, Epilogue
from .runtime import Limits, Memory

SHARE = 1 << 16  # weights for a work-group of a CPU: some 10 microseconds of work, and enough groups for all cores

Set = tuple[DeviceWeight, Part, DeviceArray]


def products(
    limits: Limits,
    x: DeviceArray,
    weights: Sequence[DeviceWeight],
    ys: Sequence[DeviceArray],
    residual: DeviceArray | None = None,
) -> Iterator[Launch]:
    """y = x W^T for each weight, or residual + x W^T. For a few tokens those of the same format in one launch, up to three."""
    sets = [(weight, part, y) for weight, y in zip(weights, ys, strict=True) for part in weight.parts]
    if _are_few(limits, x):
        epilogue: Epilogue = "" if residual is None else "add"
        for name in dict.fromkeys(weight.format.name for weight in weights):
            alike = [one for one in sets if one[0].format.name == name]
            for i in range(0, len(alike), 3):
                yield _matvec(limits, x, alike[i : i + 3], residual, epilogue)
        return
    for weight, y in zip(weights, ys, strict=True):
        yield from _of_many(limits, x, weight, y)
        if residual is not None:
            yield from TABLE["add"](limits, residual, y, y)


def gated(
    limits: Limits, x: DeviceArray, gate: DeviceWeight, up: DeviceWeight, y: DeviceArray, second: DeviceArray
) -> Iterator[Launch]:
    """y = silu(x gate^T) * x up^T. `second` is room for an array like y, where they are no single launch."""
    if _are_few(limits, x) and gate.format.name == up.format.name:  # then both have the same rows in each part
        for a, b in zip(gate.parts, up.parts, strict=True):
            yield _matvec(limits, x, [(gate, a, y), (up, b, y)], None, "swiglu")
    else:
        yield from products(limits, x, [gate, up], [y, second])
        yield from TABLE["swiglu"](limits, y, second, y)


def _are_few(limits: Limits, x: DeviceArray) -> bool:
    return x.shape[0] <= limits.tuning.few


def _of_many(limits: Limits, x: DeviceArray, weight: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
    if limits.library and limits.library.takes(x, weight):
        yield from limits.library.launches(x, weight, y)
        return
    for part in weight.parts:
        yield _panel(x, weight, part, y) if limits.kind == "cpu" else _tile(limits, x, weight, part, y)


def _matvec(limits: Limits, x: DeviceArray, sets: Sequence[Set], residual: DeviceArray | None, epilogue: Epilogue) -> Launch:
    n_tokens, n = x.shape
    weight = sets[0][0]
    n_lanes = lanes(limits, 32)
    if limits.kind == "cpu":
        rows, step = 2, runs(weight)
        share = rows * max(1, SHARE // (rows * n))
    else:
        rows, step = 4, 1
        share = rows
    told = [_told(*one) for one in sets]
    told += [(*told[0][:2], 0, 0, 0)] * (3 - len(told))  # a weight without rows
    n_groups = sum(-(-part.n_rows // share) for _, part, _ in (sets[:1] if epilogue == "swiglu" else sets))
    return Launch(
        source="matvec.c",
        kernel="matvec",
        args=(x.memory, (residual or x).memory, *chain.from_iterable(told), n, row_bytes(weight), share),
        groups=(n_groups, n_tokens),
        group_size=n_lanes,
        defines={**format_of(weight), "LANES": n_lanes, "ROWS": rows, "STEP": step, "EPILOGUE": EPILOGUES[epilogue]},
        local_bytes=4 * n_lanes,
    )


def _told(weight: DeviceWeight, part: Part, y: DeviceArray) -> tuple[Memory | int, ...]:
    return (part.memory, y.memory, part.n_rows, part.first_row, weight.shape[0])


def _panel(x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> Launch:
    n_tokens = x.shape[0]
    rows, share = 16, 256
    return Launch(
        source="matmul_panel.c",
        kernel="matmul_panel",
        args=(*_operands(x, weight, part, y), n_tokens, share),
        groups=(-(-part.n_rows // rows), -(-n_tokens // share)),
        group_size=1,
        defines={**format_of(weight), "LANES": 1},
    )


def _tile(limits: Limits, x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> Launch:
    n_tokens = x.shape[0]
    sizes = (t for t in (64, 32, 16, 8) if t <= limits.tuning.tile)
    tile = next((t for t in sizes if t * t // 16 <= limits.group_size and _tile_bytes(t) <= limits.local_memory), 4)
    return Launch(
        source="matmul_tile.c",
        kernel="matmul_tile",
        args=(*_operands(x, weight, part, y), n_tokens),
        groups=(-(-part.n_rows // tile), -(-n_tokens // tile)),
        group_size=tile * tile // 16,  # each work-item has 4 x 4 results
        defines={**format_of(weight), "LANES": tile * tile // 16, "TILE": tile},
        local_bytes=_tile_bytes(tile),
    )


def _tile_bytes(tile: int) -> int:
    """Of two tiles of 32 numbers a row, one of x and one of the weight, in float32."""
    return 2 * 32 * (tile + 1) * 4


def _operands(x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> tuple[Memory | int, ...]:
    """What both products of many tokens are told first: x, weight, y, n, row_bytes, rows, first_row, m."""
    m, n = weight.shape
    return (x.memory, part.memory, y.memory, n, row_bytes(weight), part.n_rows, part.first_row, m)


def row_bytes(weight: DeviceWeight) -> int:
    return weight.format.row_bytes(weight.shape[1])


def runs(weight: DeviceWeight) -> int:
    """Runs of 16 weights in a block; 16 floats count as one."""
    return max(weight.format.block_size // 16, 1)


def format_of(weight: DeviceWeight) -> dict[str, int | str]:
    """What blocks.c has to know."""
    f, n_runs = weight.format, runs(weight)
    return {f"FORMAT_{f.name}": 1, "RUNS": n_runs, "BLOCK_BYTES": 16 * n_runs // f.block_size * f.block_bytes}
