"""Tensors on their way from one file into another: their rows in another block format, a few at a time, on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.blocks import BlockFormat, quantize
from ops.errors import ModelError
from ops.tensor import Tensor

from .config import FILE_TYPES
from .formats.file_bytes import let_go_of_pages
from .formats.gguf_writer import NewTensor, write_gguf
from .formats.model_file import ModelFile

Rows = NDArray[np.uint8]
Make = Callable[[Tensor, slice], Rows]  # some rows of a tensor, as they are to be written

CHUNK = 1 << 20  # weights that a thread has in work: 4 MB of float32
READ_BEFORE_LETTING_GO = 1 << 26  # bytes of the mapped source that count as this process's memory
WIDE = ("F32", "BF16")  # formats that hold every float32, if roughly
TOO_LARGE = 65520.0  # rounds to infinity in float16, which the scales of all other formats are
QUANTIZATION_VERSION = 2  # of ggml's blocks: GGML_QNT_VERSION, since the scales are float16
OF_A_FORMAT = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # the file types that are named otherwise


@dataclass(frozen=True)
class Repacking:
    """How a tensor is to be written."""

    tensor: Tensor
    format: BlockFormat
    make: Make

    @property
    def nbytes(self) -> int:
        return len(self.tensor.data) * self.format.row_bytes(self.tensor.shape[-1])


def in_format(tensor: Tensor, format: BlockFormat) -> Repacking:
    """As it is stored, byte for byte, or its weights quantised anew.

    Making the rows raises ModelError for a weight that is infinite or NaN, or too large for the format.
    """
    if format is tensor.format:
        return Repacking(tensor, format, lambda tensor, rows: tensor.data[rows])

    def made(tensor: Tensor, rows: slice) -> Rows:
        with np.errstate(all="ignore"):
            values = tensor.dequantize(rows)
            largest = np.abs(values).max()
        if not np.isfinite(largest):
            raise ModelError(f"{tensor.name} holds a weight that is infinite or no number: the file is damaged")
        if largest >= TOO_LARGE and format.name not in WIDE:
            raise ModelError(
                f"{tensor.name} holds a weight of magnitude {largest:.4g}, too large for {format}: take BF16 or F32"
            )
        return quantize(values, format)

    return Repacking(tensor, format, made)


def write_model(
    source: ModelFile,
    out: Path,
    repackings: list[Repacking],
    file_type: str,
    *,
    n_threads: int,
    force: bool,
    progress: Callable[[int, int], object],
) -> int:
    """Write the source's metadata and these tensors as a GGUF file; its size in bytes.

    Raises what `write_gguf` does, and ModelError with the source's path for a weight that its new format cannot hold.
    """
    own = {"general.file_type": file_type_number(file_type), "general.quantization_version": QUANTIZATION_VERSION}
    metadata = {key: value for key, value in source.metadata.items() if not is_of_the_old_file(key)} | own
    number_types = {**source.number_types, **dict.fromkeys(own, "<u4")}
    pool = ThreadPoolExecutor(n_threads, "repack")
    try:
        tensors = [
            NewTensor(r.tensor.name, r.tensor.shape, r.format, partial(_chunks, source, r, pool, n_threads)) for r in repackings
        ]
        return write_gguf(out, metadata, tensors, number_types=number_types, force=force, progress=progress)
    except ModelError as error:  # of a thread that knew a tensor only
        raise ModelError(f"{source.path}: {error}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def is_of_the_old_file(key: str) -> bool:
    """Metadata about the file that was read, not about the model."""
    return key.startswith(("ggml.", "split.")) or key == "general.alignment"


def file_type_number(name: str) -> int:
    """llama.cpp's number of a file type, or of that whose matrices mostly have this block format."""
    return next(number for number, known in FILE_TYPES.items() if known == OF_A_FORMAT.get(name, name))


def _chunks(source: ModelFile, repacking: Repacking, pool: ThreadPoolExecutor, ahead: int) -> Iterator[Rows]:
    """The tensor's rows in order. While some are written, `ahead` further chunks are in work."""
    tensor, make = repacking.tensor, repacking.make
    step = max(1, CHUNK // tensor.shape[-1])
    waiting: deque[Future[Any]] = deque()
    read = 0
    for start in range(0, len(tensor.data), step):
        source.check()
        waiting.append(pool.submit(make, tensor, slice(start, start + step)))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
            read += step * tensor.data.shape[1]
            if read > READ_BEFORE_LETTING_GO:
                let_go_of_pages()
                read = 0
    while waiting:
        yield waiting.popleft().result()
    let_go_of_pages()
