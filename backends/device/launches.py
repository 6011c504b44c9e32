"""The launch table: for each op the kernels that compute it, and what they are told. Products are in products.py, attention,
which runs in one, in attention.py.

No launch depends on S, the positions in sight, which grows with every token: kernels read it from `positions`. So a decode
step's launches stay the same for good. Only the parts of attention, which are for tracing, have S in their results' shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

import ops

from .array import DeviceArray
from .launch import Launch, lanes, launches
from .runtime import Limits

CHUNK = 1024  # numbers that a work-group of an elementwise kernel takes


def _elementwise(limits: Limits, kernel: str, *arrays: DeviceArray, more: tuple[int, ...] = ()) -> Iterator[Launch]:
    size = prod(arrays[-1].shape)
    yield Launch(
        source="elementwise.c",
        kernel=kernel,
        args=(*(a.memory for a in arrays), size, *more),
        groups=(-(-size // CHUNK),),
        group_size=lanes(limits),
        defines={"LANES": lanes(limits), "CHUNK": CHUNK},
    )


@launches(ops.add)
def add(limits: Limits, a: DeviceArray, b: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    return _elementwise(limits, "add", a, b, y)


@launches(ops.mul)
def mul(limits: Limits, a: DeviceArray, b: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    return _elementwise(limits, "mul", a, b, y)


@launches(ops.add_bias)
def add_bias(limits: Limits, x: DeviceArray, bias: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    return _elementwise(limits, "add_bias", x, bias, y, more=(x.shape[1],))


@launches(ops.silu)
def silu(limits: Limits, x: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    return _elementwise(limits, "silu", x, y)


@launches(ops.gelu)
def gelu(limits: Limits, x: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    return _elementwise(limits, "gelu", x, y)


@launches(ops.swiglu)
def swiglu(limits: Limits, gate: DeviceArray, up: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    return _elementwise(limits, "swiglu", gate, up, y)


@launches(ops.rmsnorm)
def rmsnorm(limits: Limits, x: DeviceArray, weight: DeviceArray, y: DeviceArray, *, eps: float) -> Iterator[Launch]:
    rows, n = x.shape
    n_lanes = lanes(limits)
    yield Launch(
        source="norm.c",
        kernel="rmsnorm",
        args=(x.memory, weight.memory, y.memory, n, float(eps)),
        groups=(rows,),
        group_size=n_lanes,
        defines={"LANES": n_lanes},
        local_bytes=4 * n_lanes,
    )


@launches(ops.layernorm)
def layernorm(
    limits: Limits, x: DeviceArray, weight: DeviceArray, bias: DeviceArray, y: DeviceArray, *, eps: float
) -> Iterator[Launch]:
    rows, n = x.shape
    n_lanes = lanes(limits)
    yield Launch(
        source="layernorm.c",
        kernel="layernorm",
        args=(x.memory, weight.memory, bias.memory, y.memory, n, float(eps)),
        groups=(rows,),
        group_size=n_lanes,
        defines={"LANES": n_lanes},
        local_bytes=4 * n_lanes,
    )


@launches(ops.rope)
def rope(
    limits: Limits, x: DeviceArray, positions: DeviceArray, freqs: DeviceArray, y: DeviceArray, *, neox: bool = False
) -> Iterator[Launch]:
    n_tokens, h, d = x.shape
    yield Launch(
        source="rope.c",
        kernel="rope",
        args=(x.memory, positions.memory, freqs.memory, y.memory, h, d, freqs.shape[0], int(neox)),
        groups=(n_tokens,),
        group_size=lanes(limits, 64),
        defines={"LANES": lanes(limits, 64)},
    )


@launches(ops.kv_write)
def kv_write(limits: Limits, cache: DeviceArray, x: DeviceArray, positions: DeviceArray, seen: DeviceArray) -> Iterator[Launch]:
    n_tokens, k, d = x.shape
    yield Launch(
        source="cache.c",
        kernel="kv_write",
        args=(cache.memory, x.memory, positions.memory, k * d),
        groups=(n_tokens,),
        group_size=lanes(limits),
        defines={"LANES": lanes(limits), "HALF": _is_half(cache)},
    )


@launches(ops.rope_kv_write)
def rope_kv_write(
    limits: Limits,
    q: DeviceArray,
    key: DeviceArray,
    value: DeviceArray,
    positions: DeviceArray,
    freqs: DeviceArray,
    k_cache: DeviceArray,
    v_cache: DeviceArray,
    turned: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    *,
    neox: bool = False,
) -> Iterator[Launch]:
    n_tokens, h, d = q.shape
    _, k, e = value.shape
    arrays = (q, key, value, positions, freqs, k_cache, v_cache, turned)
    yield Launch(
        source="rope_kv.c",
        kernel="rope_kv_write",
        args=(*(a.memory for a in arrays), h, k, d, e),
        groups=(n_tokens,),
        group_size=lanes(limits, 64),
        defines={
            "LANES": lanes(limits, 64),
            "HALF_K": _is_half(k_cache),
            "HALF_V": _is_half(v_cache),
            "R": freqs.shape[0],
            "NEOX": int(neox),
        },
        local_bytes=8 * freqs.shape[0],
    )


@launches(ops.get_rows)
def get_rows(limits: Limits, x: DeviceArray, ids: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    yield Launch(
        source="rows.c",
        kernel="get_rows",
        args=(x.memory, ids.memory, y.memory, x.shape[1]),
        groups=(y.shape[0],),
        group_size=lanes(limits),
        defines={"LANES": lanes(limits)},
    )


# The parts of attention, for those who want to see what lies between.


@launches(ops.attention_scores)
def attention_scores(limits: Limits, q: DeviceArray, keys: DeviceArray, kq: DeviceArray) -> Iterator[Launch]:
    n_tokens, h, d = q.shape
    n_seen, k, _ = keys.shape
    yield _part(limits, "attention_scores", (q, keys, kq), (h, k, d, n_seen), (h, n_tokens), keys)


@launches(ops.causal_mask)
def causal_mask(limits: Limits, kq: DeviceArray, positions: DeviceArray, y: DeviceArray, *, scale: float) -> Iterator[Launch]:
    h, n_tokens, n_seen = kq.shape
    yield _part(limits, "causal_mask", (kq, positions, y), (n_seen, float(scale)), (h, n_tokens))


@launches(ops.softmax)
def softmax(limits: Limits, x: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    h, n_tokens, n_seen = x.shape
    yield _part(limits, "softmax", (x, y), (n_seen,), (h * n_tokens,))


@launches(ops.attention_mix)
def attention_mix(limits: Limits, p: DeviceArray, values: DeviceArray, y: DeviceArray) -> Iterator[Launch]:
    h, n_tokens, n_seen = p.shape
    _, k, d = values.shape
    yield _part(limits, "attention_mix", (p, values, y), (h, k, d, n_seen), (h, n_tokens), values)


def _part(
    limits: Limits,
    kernel: str,
    arrays: tuple[DeviceArray, ...],
    numbers: tuple[int | float, ...],
    groups: tuple[int, ...],
    cache: DeviceArray | None = None,
) -> Launch:
    return Launch(
        source="attention_parts.c",
        kernel=kernel,
        args=(*(a.memory for a in arrays), *numbers),
        groups=groups,
        group_size=lanes(limits),
        defines={"LANES": lanes(limits), "HALF": _is_half(cache) if cache else 0},
        local_bytes=4 * lanes(limits),
    )


def _is_half(cache: DeviceArray) -> int:
    return int(cache.dtype == np.float16)
