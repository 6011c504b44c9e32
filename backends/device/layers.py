"""A layer's launches as one, for steps of one token on a CPU: kernels/layer_int8.c tells why, and how.

It is nothing but a sequence of launches that is found in a step's list, any such sequence: they are told the same, and do the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from ..base import usable_cpus
from .launch import Launch
from .runtime import Limits, Memory

KERNELS = (
    *("product_int8", "rope_kv_write", "attention_one", "attention_merge"),  # q, k and v; to the cache; over the keys
    *("product_int8", "product_int8", "product_int8"),  # what attention gives; gate and up; down
)
APART = 16  # ints from one counter to the next: each has a line of the cache
SYNC_BYTES = 4 * APART * (2 * len(KERNELS) + 1)  # counters: of shares taken, and done, in each stage; of work-groups at the end


def merged(limits: Limits, launches: Sequence[Launch], sync: Memory) -> list[Launch]:
    """The list with one launch for each such sequence. sync: SYNC_BYTES of zeros, which all of them use."""
    found: list[Launch] = []
    at = 0
    while at < len(launches):
        part = launches[at : at + len(KERNELS)]
        if tuple(launch.kernel for launch in part) == KERNELS and limits.integers:
            found.append(_as_one(limits, part, sync))
            at += len(KERNELS)
        else:
            found.append(launches[at])
            at += 1
    return found


def _as_one(limits: Limits, part: Sequence[Launch], sync: Memory) -> Launch:
    rope, attention, merge = (launch.groups for launch in part[1:4])
    shares = (rope[0], attention[0] * attention[1], attention[0], merge[0])  # a product's are cut anew
    return Launch(
        source="layer_int8.c",
        kernel="layer_int8",
        args=(*chain.from_iterable(launch.args for launch in part), sync, *shares),
        groups=(min(limits.cores, usable_cpus()),),  # each of them waits awake
        group_size=1,
        defines={
            **{name: value for launch in part for name, value in launch.defines.items()},
            "STAGES": len(KERNELS),
            "APART": APART,
        },
        local_bytes=sum(launch.local_bytes for launch in part),
    )
