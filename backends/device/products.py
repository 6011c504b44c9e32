"""The launch table's products: where nearly all the time goes. Their weights are blocks, unpacked where they are used."""

from __future__ import annotations

from collections.abc import Iterator

import ops

from .array import DeviceArray, DeviceWeight, Part
from .launch import Launch, lanes, launches
from .runtime import Limits

FEW = 4  # tokens up to which each of them reads the weights anew


@launches(ops.matmul)
def matmul(limits: Limits, x: DeviceArray, weight: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
    for part in weight.parts:
        if x.shape[0] <= FEW:
            yield _matvec(limits, x, weight, part, y)
        elif limits.kind == "cpu":
            yield _panel(x, weight, part, y)
        else:
            yield _tile(limits, x, weight, part, y)


@launches(ops.embedding)
def embedding(limits: Limits, tokens: DeviceArray, table: DeviceWeight, y: DeviceArray) -> Iterator[Launch]:
    n_tokens, n = y.shape
    for part in table.parts:
        yield Launch(
            source="products.c",
            kernel="embedding",
            args=(tokens.memory, part.memory, y.memory, n, _row_bytes(table), part.n_rows, part.first_row),
            groups=(n_tokens,),
            group_size=lanes(limits, 32),
            defines={**_format(table), "LANES": lanes(limits, 32), "ROWS": 4, "STEP": 1},
        )


def _matvec(limits: Limits, x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> Launch:
    n_tokens, n = x.shape
    n_lanes = lanes(limits, 32)
    rows = 4
    share = rows if limits.kind == "gpu" else max(rows, -(-part.n_rows // (8 * rows)) * rows)
    return Launch(
        source="products.c",
        kernel="matvec",
        args=(
            *(x.memory, part.memory, y.memory, n, _row_bytes(weight), part.n_rows),
            *(share, part.first_row, weight.shape[0]),
        ),
        groups=(-(-part.n_rows // share), n_tokens),
        group_size=n_lanes,
        defines={**_format(weight), "LANES": n_lanes, "ROWS": rows, "STEP": _runs(weight) if limits.kind == "cpu" else 1},
        local_bytes=4 * n_lanes,
    )


def _panel(x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> Launch:
    n_tokens, n = x.shape
    rows, share = 16, 256
    return Launch(
        source="products_panel.c",
        kernel="matmul_panel",
        args=(
            *(x.memory, part.memory, y.memory, n, _row_bytes(weight), part.n_rows),
            *(part.first_row, weight.shape[0], n_tokens, share),
        ),
        groups=(-(-part.n_rows // rows), -(-n_tokens // share)),
        group_size=1,
        defines={**_format(weight), "LANES": 1, "DEPTH": 256},
    )


def _tile(limits: Limits, x: DeviceArray, weight: DeviceWeight, part: Part, y: DeviceArray) -> Launch:
    n_tokens, n = x.shape
    tile = next(t for t in (64, 32, 16, 8, 4) if t * t // 16 <= limits.group_size and _tile_bytes(t) <= limits.local_memory)
    return Launch(
        source="products_tile.c",
        kernel="matmul_tile",
        args=(
            *(x.memory, part.memory, y.memory, n, _row_bytes(weight), part.n_rows),
            *(part.first_row, weight.shape[0], n_tokens),
        ),
        groups=(-(-part.n_rows // tile), -(-n_tokens // tile)),
        group_size=tile * tile // 16,
        defines={**_format(weight), "LANES": tile * tile // 16, "TILE": tile},
        local_bytes=_tile_bytes(tile),
    )


def _tile_bytes(tile: int) -> int:
    return 2 * 4 * 16 * (tile + 1)


def _row_bytes(weight: DeviceWeight) -> int:
    return weight.format.row_bytes(weight.shape[1])


def _runs(weight: DeviceWeight) -> int:
    """Runs of 16 weights in a block; a run of floats counts as one."""
    return max(weight.format.block_size // 16, 1)


def _format(weight: DeviceWeight) -> dict[str, int | str]:
    f, runs = weight.format, _runs(weight)
    return {f"FORMAT_{f.name}": 1, "RUNS": runs, "BLOCK_BYTES": 16 * runs // f.block_size * f.block_bytes}
