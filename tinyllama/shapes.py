"""Models known by their sizes, so that their memory can be counted without their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ops.blocks import FORMATS
from ops.blocks.ggjt import WITH_FLOAT32_SCALES
from ops.errors import OptionError
from ops.tensor import Tensor

from .architectures import architecture
from .build import build
from .config import Config
from .formats.file_bytes import nothing_to_check
from .formats.model_file import ModelFile
from .tensor_types import BASE, tensor_types


def llama(n_embd: int, n_layer: int, n_head: int, n_ff: int, *, n_head_kv: int = 0, n_ctx: int = 2048) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "llama.context_length": n_ctx,
        "llama.embedding_length": n_embd,
        "llama.block_count": n_layer,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": n_head_kv or n_head,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "n_vocab": 32000,
    }


def falcon(n_embd: int, n_layer: int, n_head: int, n_head_kv: int) -> dict[str, Any]:
    return {
        "general.architecture": "falcon",
        "falcon.context_length": 2048,
        "falcon.embedding_length": n_embd,
        "falcon.block_count": n_layer,
        "falcon.feed_forward_length": 4 * n_embd,
        "falcon.attention.head_count": n_head,
        "falcon.attention.head_count_kv": n_head_kv,
        "falcon.attention.layer_norm_epsilon": 1e-5,
        "n_vocab": 65024,
    }


# Touvron et al. 2023 (arXiv 2302.13971, table 2; 2307.09288), Zhang et al. 2024 (arXiv 2401.02385),
# Almazrouei et al. 2023 (arXiv 2311.16867, table 15)
SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": llama(4096, 32, 32, 11008),
    "llama-13b": llama(5120, 40, 40, 13824),
    "llama-30b": llama(6656, 60, 52, 17920),
    "llama-65b": llama(8192, 80, 64, 22016),
    "llama2-7b": llama(4096, 32, 32, 11008, n_ctx=4096),
    "llama2-13b": llama(5120, 40, 40, 13824, n_ctx=4096),
    "llama2-70b": llama(8192, 80, 64, 28672, n_head_kv=8, n_ctx=4096),
    "tinyllama-1.1b": llama(2048, 22, 32, 5632, n_head_kv=4),
    "falcon-7b": falcon(4544, 32, 71, 1),
    "falcon-40b": falcon(8192, 60, 128, 8),
    "falcon-180b": falcon(14848, 80, 232, 8),
}
# Blocks of ggjt v2, May 2023: their scales were float32. K-quants came later.
OF_GGJT2 = {"F32": "F32", "F16": "F16", "Q5_0": "Q5_0", "Q5_1": "Q5_1", **WITH_FLOAT32_SCALES}
FILE_FORMATS = ("gguf", "ggjt2")
ONE_NORM = ("falcon-7b",)  # for attention and MLP both; the larger Falcons have one for each
Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name


def shape_file(name: str, type: str, file_format: str = "gguf") -> ModelFile:
    """A file of this model as it would be, its tensors all zero and in no memory.

    type: Q4_0, Q4_K_M ... in either case. file_format: gguf, where some tensors get another type (as `tinyllama quantize`
    chooses them), or ggjt2, where all matrices have one, with the blocks of May 2023.

    OptionError: a name, type or format that is not known, or that do not go together.
    """
    if name not in SHAPES:
        raise OptionError(f"no shape '{name}': known are {', '.join(SHAPES)}")
    metadata = dict(SHAPES[name])
    arch = architecture(metadata["general.architecture"])
    config = arch.config(metadata, metadata.pop("n_vocab"))
    two_norms = name not in ONE_NORM
    shapes = {
        tensor: shape
        for tensor, shape in arch.tensors(config).items()
        if not arch.optional(tensor) or tensor == "output.weight" or ("attn_norm_2" in tensor and two_norms)
    }
    return _on_paper(Path(name), metadata, config, shapes, type, file_format)


def requantized(file: ModelFile, type: str | None, file_format: str = "gguf") -> ModelFile:
    """The file as it would be in another type, None for its own.

    OptionError as in `shape_file`; FormatError, ModelError: it is no sound model.
    """
    config = build(file).config
    if type is None and config.ftype.upper() not in (BASE if file_format == "gguf" else OF_GGJT2):
        raise OptionError(
            f"{file.path.name}: its own type ({config.ftype}) cannot be made here: say which one it is to have in "
            f"{file_format} blocks, such as q4_0 (TYPE)"
        )
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    planned = _on_paper(file.path, file.metadata, config, shapes, type or config.ftype, file_format)
    own = {name: tensor for name, tensor in file.tensors.items() if len(tensor.shape) == 1}  # read when the graph is built
    return replace(planned, tensors={**planned.tensors, **own})


def on_paper(name: str, shape: tuple[int, ...], type: str) -> Tensor:
    """A tensor of zeros that takes no memory: every row is the same byte."""
    format = FORMATS[type]
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    return Tensor(name, shape, format, np.broadcast_to(np.uint8(0), (rows, format.row_bytes(shape[-1]))))


def _on_paper(
    path: Path, metadata: Mapping[str, Any], config: Config, shapes: Shapes, type: str, file_format: str
) -> ModelFile:
    types = _types(config, shapes, type.upper(), file_format)
    tensors = {tensor: on_paper(tensor, shape, types[tensor]) for tensor, shape in shapes.items()}
    told = f"{type.upper()} in {'GGUF' if file_format == 'gguf' else 'ggjt v2'}"
    return ModelFile(path, told, metadata, tensors, True, nothing_to_check)


def _types(config: Config, shapes: Shapes, type: str, file_format: str) -> dict[str, str]:
    if file_format == "gguf":
        return tensor_types(config, shapes, type)
    if file_format != "ggjt2":
        raise OptionError(f"no file format '{file_format}': known are {', '.join(FILE_FORMATS)}")
    if config.arch != "llama":
        raise OptionError(f"ggjt2 files hold LLaMA only, not {config.arch}: take --file-format gguf")
    if type not in OF_GGJT2:
        raise OptionError(f"ggjt2 files have no {type}: they have {', '.join(OF_GGJT2)}")
    return {name: OF_GGJT2[type] if len(shape) > 1 else "F32" for name, shape in shapes.items()}
