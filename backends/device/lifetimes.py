"""Buffers planned by lifetime: a value whose last reader has run gives its memory to the next that is made.

A transformer's step makes some five hundred values, and at no time needs more than a handful of them. The plan is made once,
for the largest step; a smaller one uses the same buffers, less of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """A value of `nbytes`, made at one moment and needed up to another; both are counted in nodes."""

    nbytes: int
    made: int
    last_use: int


@dataclass(frozen=True)
class Shared:
    """Which buffer each value lives in, and how large each buffer is."""

    buffer_of: tuple[int, ...]
    sizes: tuple[int, ...]


def share(lifetimes: Sequence[Lifetime]) -> Shared:
    """Values in the order in which they are made. Each takes the free buffer that fits best, or the largest and widens it.

    A node's result never lies where its operands do: one that ends at moment t is free from t + 1.
    """
    sizes: list[int] = []
    free_from: list[int] = []
    buffer_of = []
    for value in lifetimes:
        free = [b for b in range(len(sizes)) if free_from[b] <= value.made]
        fitting = [b for b in free if sizes[b] >= value.nbytes]
        if fitting:
            chosen = min(fitting, key=lambda b: sizes[b])
        elif free:
            chosen = max(free, key=lambda b: sizes[b])
        else:
            chosen = len(sizes)
            sizes.append(0)
            free_from.append(0)
        sizes[chosen] = max(sizes[chosen], value.nbytes)
        free_from[chosen] = value.last_use + 1
        buffer_of.append(chosen)
    return Shared(tuple(buffer_of), tuple(sizes))
