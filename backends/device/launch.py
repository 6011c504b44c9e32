"""A launch: one kernel, told what to work on and by how many work-items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ops.op import Op

from .runtime import Limits, Memory

Launches = Callable[..., "Iterator[Launch]"]

Rooms = Callable[..., "list[int]"]

TABLE: dict[str, Launches] = {}  # op -> what computes it: (limits, *operands, *outputs, **attrs) -> launches
ROOMS: dict[str, Rooms] = {}  # op -> bytes of memory that its launches need between them: (limits, *shapes of these, **attrs)


@dataclass(frozen=True)
class Launch:
    """`groups` work-groups (along up to three axes) of `group_size` work-items each."""

    source: str  # a file in kernels/
    kernel: str  # a function in it
    args: tuple[Memory | int | float, ...]  # ints are int32, floats float32
    groups: tuple[int, ...]
    group_size: int
    defines: Mapping[str, int | str]  # what is known when it is compiled, by macro name
    local_bytes: int = 0  # memory its work-items share, declared in the kernel

    @property
    def program(self) -> tuple[Any, ...]:
        """What is compiled together: equal for launches of the same code."""
        return (self.source, *sorted(self.defines.items()))


def launches(op: Op, rooms: Rooms | None = None) -> Callable[[Launches], Launches]:
    """Declare what computes an op: a decorator above a generator of launches.

    rooms: for launches that hand something on to each other. They get `rooms=`, a Memory of at least so many bytes for each
    number, undefined before and after. A larger step never needs less.
    """

    def declare(function: Launches) -> Launches:
        TABLE[op.name] = function
        if rooms is not None:
            ROOMS[op.name] = rooms
        return function

    return declare


def covers(op: Op) -> bool:
    """Is it computed on the device? What only sees memory with another shape needs no launch."""
    return op.name in TABLE or (bool(op.views) and not any(operand.written for operand in op.inputs))


def lanes(limits: Limits, wanted: int = 128) -> int:
    """Work-items that share a row: one on a CPU, whose loops the compiler vectorises; a power of two on a GPU."""
    if limits.kind == "cpu":
        return 1
    most = min(wanted, limits.group_size)
    return 1 << (most.bit_length() - 1)
