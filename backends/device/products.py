"""The launch table's products, where nearly all of the time goes: each weight in the way of its form.

Panels are multiplied by integers (products_int8.py), blocks as they are in the file by floats (products_float.py). What is
fused stays together as far as the weights are alike: what reads the same x is one launch, and so is what follows a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import ops

from . import products_float, products_int8
from .array import DeviceArray, DeviceWeight, PanelWeight
from .launch import TABLE, Launch, lanes, launches
from .products_int8 import Before
from .runtime import Limits, Memory

Weight = DeviceWeight | PanelWeight
Rooms = Sequence[Memory]
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
        yield from products_float.products(limits, x, [weight], [y], residual)


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
        return
    second = DeviceArray(rooms[2], y.shape, y.dtype)
    if isinstance(gate, DeviceWeight) and isinstance(up, DeviceWeight):
        normed = DeviceArray(rooms[1], x.shape, x.dtype)
        yield from TABLE["rmsnorm"](limits, x, norm, normed, eps=eps)
        yield from products_float.gated(limits, normed, gate, up, y, second)
    else:
        yield from _normed_each(limits, x, Before(norm, eps), [gate, up], [y, second], rooms)
        yield from TABLE["swiglu"](limits, y, second, y)


def _each(
    limits: Limits, x: DeviceArray, weights: Sequence[Weight], ys: Sequence[DeviceArray], rooms: Rooms
) -> Iterator[Launch]:
    """y = x W^T for each weight, each in the way of its form."""
    yield from _in_panels(limits, x, weights, ys, rooms[0])
    pairs = [(weight, y) for weight, y in zip(weights, ys, strict=True) if isinstance(weight, DeviceWeight)]
    yield from products_float.products(limits, x, [w for w, _ in pairs], [y for _, y in pairs])


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


@launches(ops.embedding)
def embedding(limits: Limits, tokens: DeviceArray, table: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
    n_tokens, n = y.shape
    n_lanes = lanes(limits, 32)
    for part in table.parts:
        yield Launch(
            source="embedding.c",
            kernel="embedding",
            args=(tokens.memory, part.memory, y.memory, n, products_float.row_bytes(table), part.n_rows, part.first_row),
            groups=(n_tokens,),
            group_size=n_lanes,
            defines={**products_float.format_of(table), "LANES": n_lanes},
        )
