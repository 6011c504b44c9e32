"""The launch table's top_k: a sorted list of the best of each span of a row, and lists merged until there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ops

from .array import DeviceArray
from .launch import Launch, lanes, launches
from .runtime import Limits, Memory

SPAN = 256  # numbers of a work-group on a GPU, each of which is compared with all the others
SHORTEST = 1024  # of one on a CPU: fewer are not worth its launch
FAN = 16  # lists that are merged into one

Shape = tuple[int, ...]


def _spans(limits: Limits, n: int) -> list[int]:
    """How many numbers of a row a list stands for: at first, and after each merge. On a CPU two lists for each core at first,
    so that one that is late does not leave the others idle."""
    spans = [SPAN if limits.kind == "gpu" else max(SHORTEST, -(-n // (2 * limits.cores)))]
    while spans[-1] < n:
        spans.append(min(FAN * spans[-1], n))
    return spans


def _rooms(limits: Limits, x: Shape, values: Shape, ids: Shape, *, k: int) -> list[int]:
    """For the lists of each launch but the last: their numbers, and the places of these."""
    rows, n = x
    return [4 * rows * -(-n // span) * min(k, span) for span in _spans(limits, n)[:-1] for _ in (values, ids)]


@launches(ops.top_k, rooms=_rooms)
def top_k(
    limits: Limits, x: DeviceArray, values: DeviceArray, ids: DeviceArray, *, k: int, rooms: Sequence[Memory]
) -> Iterator[Launch]:
    rows, n = x.shape
    read: tuple[Memory, ...] = (x.memory,)
    narrower = 0
    for i, span in enumerate(_spans(limits, n)):
        made = (values.memory, ids.memory) if span >= n else (rooms[2 * i], rooms[2 * i + 1])
        if i == 0:
            yield _launch(limits, "best_of_span", (*read, *made, n, span, k), (-(-n // span), rows))
        else:
            yield _launch(limits, "merge", (*read, *made, n, narrower, span, k), (-(-n // narrower), rows))
        read, narrower = made, span


def _launch(limits: Limits, kernel: str, args: tuple[Memory | int, ...], groups: tuple[int, int]) -> Launch:
    n_lanes = lanes(limits, SPAN)
    return Launch(
        source="top_k.c",
        kernel=kernel,
        args=args,
        groups=groups,
        group_size=n_lanes,
        defines={"LANES": n_lanes, "SPAN": SPAN, "FAN": FAN},
        local_bytes=4 * SPAN if kernel == "best_of_span" and n_lanes > 1 else 0,
    )
