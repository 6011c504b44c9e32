"""A step's launches as one, for one token on a CPU: kernels/step.c tells why, and how.

Its stages are the launches as they stand in the step's list. Each is told the same as the kernel of its own, and does the same;
all that differs is who comes after whom. What it is told is noted once in a table on the device, by a kernel: so a step passes
two arguments instead of thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod

from ..base import usable_cpus
from .launch import Launch
from .launches import CHUNK
from .runtime import Limits, Memory

KERNELS = {"product_int8", "rope_kv_write", "attention_one", "attention_merge", "add", "get_rows"}
# Defines that these must agree on
DEFINES = {"TOKENS", "STRIDE", "WIDE_INTS", "R", "NEOX", "HEAD_K", "HEAD_V", "HALF_K", "HALF_V", "HEADS"}
STAGE_BYTES = 256  # of a stage in the table
COUNTER_BYTES = 64  # a line of the cache. A stage has two: how many of its shares are taken, and done
SHARES = 3  # of a product, for each core: so few panels that none is much later than the others


def together(limits: Limits, launches: Sequence[Launch], table: Memory | None) -> tuple[list[Launch], list[Launch]]:
    """The list with one launch in place of those that can be stages, and what notes in the table what they are told.

    The notes have to run before, once, when the table has been cleared. As many launches as follow each other become one, if
    the table has room for them; if there are none the list stays as it is, with nothing to note.
    """
    defines = {name: value for launch in launches if launch.kernel in KERNELS for name, value in launch.defines.items()}
    if table is None or not defines.keys() >= DEFINES or defines["TOKENS"] != 1:
        return list(launches), []
    defines |= {"CHUNK": CHUNK, "STAGE_BYTES": STAGE_BYTES, "COUNTER_BYTES": COUNTER_BYTES}

    def is_stage(launch: Launch) -> bool:
        return launch.kernel in KERNELS and launch.defines.items() <= defines.items()

    runs = [(are_stages, list(run)) for are_stages, run in groupby(launches, is_stage)]
    stages = max((run for are_stages, run in runs if are_stages), key=len, default=[])
    if not 1 < len(stages) <= table.nbytes // table_bytes(1):
        return list(launches), []
    n_groups = min(limits.cores, usable_cpus())  # each of them waits awake

    def one(kernel: str, args: tuple[Memory | int | float, ...], groups: int) -> Launch:
        return Launch("step.c", kernel, args, (groups,), 1, defines, local_bytes=8 * int(defines["R"]))

    def shares(stage: Launch) -> int:
        return SHARES * n_groups if stage.kernel == "product_int8" else prod(stage.groups)

    notes = [one(f"note_{s.kernel}", (*s.args, table, at, shares(s)), 1) for at, s in enumerate(stages)]
    whole = [one("whole_step", (table, len(stages)), n_groups)]
    return [launch for _, run in runs for launch in (whole if run is stages else run)], notes


def table_bytes(n_stages: int) -> int:
    """Of a table for so many stages."""
    return n_stages * (STAGE_BYTES + 3 * COUNTER_BYTES)  # the third is one for all
