"""A model of any format that is read here, written as a GGUF file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from backends.base import usable_cpus
from ops.blocks import FORMATS
from ops.errors import ModelError, OptionError
from ops.tensor import Tensor

from .formats import open_model_file
from .formats.new_file import check_target
from .repack import TOO_LARGE, Repacking, in_format, write_model
from .tensor_types import fitting, is_quantized

OUTTYPES = ("f32", "f16", "bf16", "q8_0")
# Blocks with scales in float32, which GGUF has not: the format with scales in float16, and how many scales a block begins with.
TWINS = {"Q4_0_F32": ("Q4_0", 1), "Q4_1_F32": ("Q4_1", 2), "Q8_0_F32": ("Q8_0", 1)}


@dataclass(frozen=True)
class Converted:
    """What `convert` did."""

    nbytes: int  # of the new file
    n_tensors: int
    rounded: dict[str, float]  # tensors whose scales were rounded to float16: the largest relative change of one


def convert(
    path: Path,
    out: Path,
    outtype: str | None = None,
    *,
    force: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Converted:
    """Write the model at `path` to the GGUF file `out`, which appears when it is whole, and not at all after an error.

    outtype: of all matrices, one of OUTTYPES; None: as they are stored. Then blocks with scales in float32 become GGUF's, with
    scales rounded to float16; float32 loses nothing. What has one axis is always float32, as llama.cpp wants it.
    force: overwrite a file. progress: is told how many bytes are written, and of how many.

    OptionError: `out` cannot be written, or exists, or is one of the files read; an unknown outtype.
    FormatError, ModelError: `path` is no sound model.
    """
    if outtype is not None and outtype not in OUTTYPES:
        raise OptionError(f"no outtype '{outtype}': choose one of {', '.join(OUTTYPES)}, or none to keep the types")
    check_target(out, files_of(path), force=force)
    source = open_model_file(path)
    changes = Changes()
    repackings = [_repacking(tensor, outtype, changes) for tensor in source.tensors.values()]
    size = write_model(
        source,
        out,
        repackings,
        outtype.upper() if outtype else _most(repackings),
        n_threads=usable_cpus(),
        force=force,
        progress=progress,
    )
    return Converted(size, len(repackings), changes.largest)


def files_of(path: Path) -> list[Path]:
    """The GGUF files that a model lies in: it may be in parts. Files of other kinds are never overwritten."""
    if in_parts := re.fullmatch(r"(.*)-\d{5}(-of-\d{5}\.gguf)", path.name):
        return list(path.parent.glob(f"{escape(in_parts[1])}-*{in_parts[2]}"))
    return [path]


class Changes:
    """The largest relative change that rounding to float16 made to a scale, by tensor; counted by several threads."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self._lock = Lock()

    def count(self, name: str, change: float) -> None:
        if change:
            with self._lock:
                self.largest[name] = max(change, self.largest.get(name, 0.0))


def _repacking(tensor: Tensor, outtype: str | None, changes: Changes) -> Repacking:
    if len(tensor.shape) == 1:
        return in_format(tensor, FORMATS["F32"])
    if outtype and is_quantized(tensor.name, tensor.shape):
        return in_format(tensor, FORMATS[fitting(outtype.upper(), tensor.shape[-1])])
    if tensor.format.name not in TWINS:
        return in_format(tensor, tensor.format)
    twin, n_scales = TWINS[tensor.format.name]

    def made(tensor: Tensor, rows: slice) -> NDArray[np.uint8]:
        data = tensor.data[rows]
        blocks, change = half_scales(tensor.name, data.reshape(-1, tensor.format.block_bytes), n_scales)
        changes.count(tensor.name, change)
        return blocks.reshape(len(data), -1)

    return Repacking(tensor, FORMATS[twin], made)


def half_scales(name: str, blocks: NDArray[np.uint8], n_scales: int) -> tuple[NDArray[np.uint8], float]:
    """Blocks that begin with so many float32 as blocks that begin with float16, and the largest relative change of one."""
    scales = np.ascontiguousarray(blocks[:, : 4 * n_scales]).view("<f4")
    with np.errstate(all="ignore"):
        halves = scales.astype("<f2")
        if not np.abs(scales).max() < TOO_LARGE:
            raise ModelError(f"{name} holds a scale that is no number of float16's range: take --outtype f32, or another file")
        change = np.abs(halves.astype(np.float64) - scales) / np.where(scales == 0, 1, np.abs(scales))
    return np.concatenate([halves.view(np.uint8), blocks[:, 4 * n_scales :]], axis=1), float(change.max())


def _most(repackings: list[Repacking]) -> str:
    """The format of most weights in matrices."""
    weights: Counter[str] = Counter({"F32": 0})
    for r in repackings:
        if len(r.tensor.shape) > 1:
            weights[r.format.name] += r.tensor.n_params
    return weights.most_common(1)[0][0]
