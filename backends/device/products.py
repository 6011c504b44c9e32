"""The launch table's products, where nearly all of the time goes. Weights stay in their blocks, unpacked where they are used.

A weight may lie in several buffers, each with some of its rows: then each has a launch, which writes these rows' columns of y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import ops

from . import products_int8
from .array import DeviceArray, DeviceWeight, PanelWeight, Part
from .launch import TABLE, Launch, lanes, launches
from .products_int8 import Before
from .runtime import Limits, Memory

Weight = DeviceWeight | PanelWeight
Rooms = Sequence[Memory]

SHARE = 1 << 16  # weights for a work-group of a CPU: some 10 microseconds of work, and enough groups for all cores


Shape = tuple[int, ...]
MULTIPLIED = (ops.matmul, ops.matmul_add, ops.norm_matmul, ops.qkv, ops.norm_qkv, ops.norm_swiglu)  # that take a weight so


def _rounded(limits: Limits, x: Shape, *more: Shape) -> list[int]:
    """Room for x rounded to bytes, where it will be; and for arrays of float32 that weights without panels need between."""
    return [products_int8.room_bytes(limits, *x) if limits.integers else 0, *(4 * prod(shape) for shape in more)]


@launches(ops.matmul, rooms=lambda limits, x, weight, y: _rounded(limits, x))
def matmul(limits: Limits, x: DeviceArray, weight: Weight, y: DeviceArray, rooms: Rooms) -> Iterator[Launch]:
    return _each(limits, x, [weight], [y], rooms)


@launches(ops.matmul_add, rooms=lambda limits, x, weight, residual, y: _rounded(limits, x))
def matmul_add(
    limits: Limits, x: DeviceArray, weight: Weight, residual: DeviceArray, y: DeviceArray, rooms: Rooms
) -> Iterator[Launch]:
    if isinstance(weight, PanelWeight):
        yield from products_int8.products(limits, x, [weight], [y], rooms[0], residual=residual, epilogue="add")
    else:
        yield from _by_floats(limits, x, weight, y)
        yield from TABLE["add"](limits, residual, y, y)


@launches(ops.qkv, rooms=lambda limits, x, *others: _rounded(limits, x))
def qkv(
    limits: Limits,
    x: DeviceArray,
    q_weight: Weight,
    k_weight: Weight,
    v_weight: Weight,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    rooms: Rooms,
) -> Iterator[Launch]:
    return _each(limits, x, [q_weight, k_weight, v_weight], [q, k, v], rooms)


@launches(ops.norm_matmul, rooms=lambda limits, x, norm, weight, y, eps: _rounded(limits, x, x))
def norm_matmul(
    limits: Limits, x: DeviceArray, norm: DeviceArray, weight: Weight, y: DeviceArray, *, eps: float, rooms: Rooms
) -> Iterator[Launch]:
    return _normed_each(limits, x, Before(norm, eps), [weight], [y], rooms)


@launches(ops.norm_qkv, rooms=lambda limits, x, *others, eps: _rounded(limits, x, x))
def norm_qkv(
    limits: Limits,
    x: DeviceArray,
    norm: DeviceArray,
    q_weight: Weight,
    k_weight: Weight,
    v_weight: Weight,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    *,
    eps: float,
    rooms: Rooms,
) -> Iterator[Launch]:
    return _normed_each(limits, x, Before(norm, eps), [q_weight, k_weight, v_weight], [q, k, v], rooms)


@launches(ops.norm_swiglu, rooms=lambda limits, x, norm, gate, up, y, eps: _rounded(limits, x, x, y))
def norm_swiglu(
    limits: Limits, x: DeviceArray, norm: DeviceArray, gate: Weight, up: Weight, y: DeviceArray, *, eps: float, rooms: Rooms
) -> Iterator[Launch]:
    if isinstance(gate, PanelWeight) and isinstance(up, PanelWeight) and gate.layout.columns == up.layout.columns:
        before = Before(norm, eps)
        yield from products_int8.products(limits, x, [gate, up], [y], rooms[0], before=before, epilogue="swiglu")
    else:
        second = DeviceArray(rooms[2], y.shape, y.dtype)
        yield from _normed_each(limits, x, Before(norm, eps), [gate, up], [y, second], rooms)
        yield from TABLE["swiglu"](limits, y, second, y)


def _each(
    limits: Limits, x: DeviceArray, weights: Sequence[Weight], ys: Sequence[DeviceArray], rooms: Rooms
) -> Iterator[Launch]:
    """y = x W^T for each weight, each in the way of its form."""
    yield from _in_panels(limits, x, weights, ys, rooms[0])
    for weight, y in zip(weights, ys, strict=True):
        if isinstance(weight, DeviceWeight):
            yield from _by_floats(limits, x, weight, y)


def _normed_each(
    limits: Limits, x: DeviceArray, before: Before, weights: Sequence[Weight], ys: Sequence[DeviceArray], rooms: Rooms
) -> Iterator[Launch]:
    """The same for x normed: within the product, or before it."""
    if all(isinstance(weight, PanelWeight) for weight in weights):
        yield from _in_panels(limits, x, weights, ys, rooms[0], before)
    else:
        normed = DeviceArray(rooms[1], x.shape, x.dtype)
        yield from TABLE["rmsnorm"](limits, x, before.norm, normed, eps=before.eps)
        yield from _each(limits, normed, weights, ys, rooms)


def _in_panels(
    limits: Limits,
    x: DeviceArray,
    weights: Sequence[Weight],
    ys: Sequence[DeviceArray],
    room: Memory,
    before: Before | None = None,
) -> Iterator[Launch]:
    """Of those in panels: those together for which x is rounded alike."""
    pairs = [(weight, y) for weight, y in zip(weights, ys, strict=True) if isinstance(weight, PanelWeight)]
    for columns in sorted({weight.layout.columns for weight, _ in pairs}):
        alike = [(weight, y) for weight, y in pairs if weight.layout.columns == columns]
        yield from products_int8.products(limits, x, [w for w, _ in alike], [y for _, y in alike], room, before=before)


def _by_floats(limits: Limits, x: DeviceArray, weight: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
    """Weights in the blocks of their file, unpacked to floats where they are used."""
    if limits.library and limits.library.takes(x, weight):
        yield from limits.library.launches(x, weight, y)
        return
    for part in weight.parts:
        if x.shape[0] <= limits.tuning.few:
            yield _matvec(limits, x, weight, part, y)
        elif limits.kind == "cpu":
            yield _panel(x, weight, part, y)
        else:
            yield _tile(limits, x, weight, part, y)


@launches(ops.embedding)
def embedding(limits: Limits, tokens: DeviceArray, table: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
    n_tokens, n = y.shape
    n_lanes = lanes(limits, 32)
    for part in table.parts:
        yield Launch(
            source="embedding.c",
            kernel="embedding",
            args=(tokens.memory, part.memory, y.memory, n, _row_bytes(table), part.n_rows, part.first_row),
            groups=(n_tokens,),
            group_size=n_lanes,
            defines={**_format(table), "LANES": n_lanes},
        )


def _matvec(limits: Limits, x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> Launch:
    n_tokens, n = x.shape
    n_lanes = lanes(limits, 32)
    if limits.kind == "cpu":
        rows, step = 2, _runs(weight)
        share = rows * max(1, SHARE // (rows * n))
    else:
        rows, step = 4, 1
        share = rows
    return Launch(
        source="matvec.c",
        kernel="matvec",
        args=(*_operands(x, weight, part, y), share),
        groups=(-(-part.n_rows // share), n_tokens),
        group_size=n_lanes,
        defines={**_format(weight), "LANES": n_lanes, "ROWS": rows, "STEP": step},
        local_bytes=4 * n_lanes,
    )


def _panel(x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> Launch:
    n_tokens = x.shape[0]
    rows, share = 16, 256
    return Launch(
        source="matmul_panel.c",
        kernel="matmul_panel",
        args=(*_operands(x, weight, part, y), n_tokens, share),
        groups=(-(-part.n_rows // rows), -(-n_tokens // share)),
        group_size=1,
        defines={**_format(weight), "LANES": 1},
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
        defines={**_format(weight), "LANES": tile * tile // 16, "TILE": tile},
        local_bytes=_tile_bytes(tile),
    )


def _tile_bytes(tile: int) -> int:
    """Of two tiles of 32 numbers a row, one of x and one of the weight, in float32."""
    return 2 * 32 * (tile + 1) * 4


def _operands(x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> tuple[Memory | int, ...]:
    """What all three products are told first: x, weight, y, n, row_bytes, rows, first_row, m."""
    m, n = weight.shape
    return (x.memory, part.memory, y.memory, n, _row_bytes(weight), part.n_rows, part.first_row, m)


def _row_bytes(weight: DeviceWeight) -> int:
    return weight.format.row_bytes(weight.shape[1])


def _runs(weight: DeviceWeight) -> int:
    """Runs of 16 weights in a block; 16 floats count as one."""
    return max(weight.format.block_size // 16, 1)


def _format(weight: DeviceWeight) -> dict[str, int | str]:
    """What blocks.c has to know."""
    f, runs = weight.format, _runs(weight)
    return {f"FORMAT_{f.name}": 1, "RUNS": runs, "BLOCK_BYTES": 16 * runs // f.block_size * f.block_bytes}
