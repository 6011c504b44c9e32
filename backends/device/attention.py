"""The launch table's fused attention: on a CPU one kernel for a single token and one for many, on a GPU one for both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

import ops

from .array import DeviceArray
from .launch import Launch, lanes, launches
from .runtime import Limits, Memory

ROWS = 16  # query heads that a work-group of attention_one takes at most: a vector's lanes
COLUMNS = 1024  # numbers of a key, of all its heads together, that it keeps of a tile: 64 KiB for 16 keys
VECTORS = 3  # of 16 queries, that a work-group of attention_many takes
QUERIES = 4  # that a work-group takes at once on a GPU, as many as have room in registers

Shape = tuple[int, ...]
Arrays = tuple[DeviceArray, DeviceArray, DeviceArray, DeviceArray, DeviceArray]  # q, keys, values, positions, y


def _rooms(limits: Limits, q: Shape, keys: Shape, values: Shape, positions: Shape, y: Shape, *, scale: float) -> list[int]:
    """Of attention_one: what each part of the keys leaves of each query head. More tokens never need it, but one may follow."""
    if limits.kind == "gpu":
        return []
    (_, h, d), (_, k, e) = q, values
    return [4 * _parts(limits, h, k, d, e) * h * (_padded(e) + 16)]


@launches(ops.attention, rooms=_rooms)
def attention(
    limits: Limits,
    q: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    positions: DeviceArray,
    y: DeviceArray,
    *,
    scale: float,
    rooms: Sequence[Memory],
) -> Iterator[Launch]:
    arrays = (q, keys, values, positions, y)
    if limits.kind == "gpu":
        yield _gpu(limits, arrays, scale)
    elif q.shape[0] == 1:
        yield from _one(limits, arrays, scale, rooms[0])
    else:
        yield _many(arrays, scale)


def _one(limits: Limits, arrays: Arrays, scale: float, room: Memory) -> Iterator[Launch]:
    q, keys, values, positions, y = arrays
    (_, h, d), (_, k, e) = q.shape, values.shape
    heads, parts = _heads(h, k, d, e), _parts(limits, h, k, d, e)
    groups = -(-h // heads)
    defines = {**_defines(arrays), "LANES": 1, "HEADS": _key_heads(d, e)}
    yield Launch(
        source="attention_one.c",
        kernel="attention_one",
        args=(*(a.memory for a in (q, keys, values, positions)), room, h, k, float(scale), heads, parts),
        groups=(groups, parts),
        group_size=1,
        defines=defines,
    )
    yield Launch(
        source="attention_one.c",
        kernel="attention_merge",
        args=(room, y.memory, h, heads, parts),
        groups=(groups,),
        group_size=1,
        defines=defines,
    )


def _key_heads(d: int, e: int) -> int:
    """That a work-group of attention_one has room for. Two, if more query heads than it takes share one of them."""
    return max(2, COLUMNS // _padded(max(d, e)))


def _heads(h: int, k: int, d: int, e: int) -> int:
    """Query heads of a work-group of attention_one: with all that share their key heads, if these are not too many."""
    sharing = h // k
    return ROWS if sharing > ROWS else sharing * min(ROWS // sharing, _key_heads(d, e))


def _parts(limits: Limits, h: int, k: int, d: int, e: int) -> int:
    """Into which the keys are cut: two work-groups for each core, so that one that is late does not leave the others idle."""
    return -(-2 * limits.cores // -(-h // _heads(h, k, d, e)))


def _many(arrays: Arrays, scale: float) -> Launch:
    (n_tokens, h, _), (_, k, _) = arrays[0].shape, arrays[2].shape
    return Launch(
        source="attention_many.c",
        kernel="attention_many",
        args=(*(a.memory for a in arrays), n_tokens, h, k, float(scale)),
        groups=(k, -(-n_tokens * (h // k) // (16 * VECTORS))),
        group_size=1,
        defines={**_defines(arrays), "LANES": 1, "VECTORS": VECTORS},
    )


def _gpu(limits: Limits, arrays: Arrays, scale: float) -> Launch:
    (n_tokens, h, d), (_, k, _) = arrays[0].shape, arrays[2].shape
    n_lanes = lanes(limits, 64)
    queries = QUERIES if 2 * n_tokens > QUERIES else 1  # two kernels to compile and no more
    return Launch(
        source="attention.c",
        kernel="attention",
        args=(*(a.memory for a in arrays), n_tokens, h, k, float(scale)),
        groups=(h, -(-n_tokens // queries)),
        group_size=n_lanes,
        defines={**_defines(arrays), "LANES": n_lanes, "QUERIES": queries},
        local_bytes=4 * queries * (d + 64),
    )


def _defines(arrays: Arrays) -> dict[str, int | str]:
    """What attention_types.c has to know."""
    _, keys, values, *_ = arrays
    half_k, half_v = (int(cache.dtype == np.float16) for cache in (keys, values))
    return {"HEAD_K": keys.shape[2], "HEAD_V": values.shape[2], "HALF_K": half_k, "HALF_V": half_v}


def _padded(n: int) -> int:
    return -(-n // 16) * 16
