"""A model with its matrices quantised, written as a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backends.base import usable_cpus
from ops.blocks import FORMATS
from ops.errors import OptionError

from .build import build
from .checks import whole_number
from .convert import files_of
from .formats import open_model_file
from .formats.new_file import check_target
from .repack import Repacking, in_format, write_model
from .tensor_types import BASE, FLOATS, is_quantized, tensor_types


@dataclass(frozen=True)
class Quantized:
    """What `quantize` did. Bytes are those of tensors."""

    tensors: list[Repacking]
    nbytes_before: int
    nbytes: int
    n_params: int


def quantize(
    path: Path,
    out: Path,
    ftype: str,
    *,
    allow_requantize: bool = False,
    n_threads: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Quantized:
    """Write the model at `path` to the GGUF file `out`, its matrices quantised as `tensor_types` chooses.

    ftype: Q4_0, Q4_K_M ..., in either case. allow_requantize: also what is quantised already, which loses twice.
    n_threads: None for all cores. The file appears when it is whole, and not at all after an error. force: overwrite a file.
    progress: is told how many bytes are written, and of how many.

    OptionError: `out` cannot be written, or exists, or is one of the files read; an unknown ftype; a tensor that is quantised
    already. FormatError, ModelError: `path` is no sound model.
    """
    threads = usable_cpus() if n_threads is None else whole_number("n_threads", n_threads, 1, 1024)
    file_type = ftype.upper()
    if file_type not in BASE:
        raise OptionError(f"no type '{ftype}' to quantise to: choose one of {', '.join(BASE)}")
    check_target(out, files_of(path), force=force)
    source = open_model_file(path)
    types = tensor_types(build(source).config, {t.name: t.shape for t in source.tensors.values()}, file_type)
    repackings = []
    for tensor in source.tensors.values():
        chosen = FORMATS[types[tensor.name]]
        stays = len(tensor.shape) > 1 and not is_quantized(tensor.name, tensor.shape)
        r = in_format(tensor, tensor.format if stays else chosen)
        if r.format is not tensor.format and tensor.format.name not in FLOATS and not allow_requantize:
            raise OptionError(
                f"{path}: {tensor.name} is quantised already ({tensor.format}): quantise the F16 or F32 file that this one was "
                "made from, or lose precision twice with --allow-requantize"
            )
        repackings.append(r)
    write_model(source, out, repackings, file_type, n_threads=threads, force=force, progress=progress)
    return Quantized(repackings, source.nbytes, sum(r.nbytes for r in repackings), source.n_params)
