"""A step's launches as one, for one token on a CPU: kernels/step.c tells why, and how.

Its stages are the launches as they stand in the step's list. Each is told the same as the kernel of its own, and does the same;
all that differs is who comes after whom. What it is told is noted once in a table on the device, by a kernel: so a step passes
three arguments instead of thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from math import prod

from ..base import usable_cpus
from .launch import Launch
from .launches import CHUNK
from .runtime import Memory, Runtime

KERNELS = {"product_int8", "rope_kv_write", "attention_one", "attention_merge", "add", "get_rows"}
DEFINES = {"TOKENS", "STRIDE", "R", "NEOX", "HEAD_K", "HEAD_V", "HALF_K", "HALF_V", "HEADS"}  # which these must agree on
STAGE_BYTES = 256  # of a stage in the table
COUNTER_BYTES = 64  # a line of the cache. A stage has two: how many of its shares are taken, and done
SHARES = 3  # of a product, for each core: so few panels that none is much later than the others


def together(runtime: Runtime, launches: Sequence[Launch]) -> list[Launch]:
    """The list with one launch in place of those that follow each other and can be stages."""
    defines = {name: value for launch in launches if launch.kernel in KERNELS for name, value in launch.defines.items()}
    if not defines.keys() >= DEFINES or defines["TOKENS"] != 1:
        return list(launches)
    defines |= {"CHUNK": CHUNK, "STAGE_BYTES": STAGE_BYTES, "COUNTER_BYTES": COUNTER_BYTES}

    def is_stage(launch: Launch) -> bool:
        return launch.kernel in KERNELS and launch.defines.items() <= defines.items()

    def parts() -> Iterator[Launch]:
        for are_stages, run in groupby(launches, is_stage):
            part = list(run)
            if are_stages and len(part) > 1:
                yield _as_one(runtime, part, defines)
            else:
                yield from part

    return list(parts())


def table_bytes(n_launches: int) -> int:
    """Of the tables and counters for so many launches."""
    return n_launches * (STAGE_BYTES + 2 * COUNTER_BYTES) + COUNTER_BYTES


def _as_one(runtime: Runtime, stages: Sequence[Launch], defines: dict[str, int | str]) -> Launch:
    table = runtime.allocate(len(stages) * STAGE_BYTES)
    counters = runtime.allocate((2 * len(stages) + 1) * COUNTER_BYTES)
    runtime.clear(counters)
    n_groups = min(runtime.limits.cores, usable_cpus())  # each of them waits awake

    def one(kernel: str, args: tuple[Memory | int | float, ...], groups: int) -> Launch:
        return Launch("step.c", kernel, args, (groups,), 1, defines, local_bytes=8 * int(defines["R"]))

    notes = []
    for at, stage in enumerate(stages):
        n_shares = SHARES * n_groups if stage.kernel == "product_int8" else prod(stage.groups)
        notes.append(one(f"note_{stage.kernel}", (*stage.args, table, at, n_shares), 1))
    runtime.prepare(notes)()
    runtime.finish()
    return one("whole_step", (table, counters, len(stages)), n_groups)
