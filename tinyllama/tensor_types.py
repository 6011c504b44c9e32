"""Which block format each tensor gets when a model is quantised: the choice of llama.cpp (`llama_tensor_get_type`).

A few tensors matter more to the result than others, and get more bits. With L layers, and `more` the layers that
`more_bits` names (the first and the last eighth, and every third between):

    tensor                               Q4_K_M                             Q5_K_M              any other type
    output, or token_embd in its place   Q6_K; Falcon: Q8_0                 the same            the same; for Q8_0: Q8_0
    attn_v, attn_qkv                     Q6_K in `more`, else Q4_K          Q6_K in `more`      its own
                                         (of 70B: else Q5_K)
    ffn_down                             Q6_K in `more`                     Q6_K in `more`      its own
                                         (Falcon: Q6_K in the first L/16,
                                         else Q5_K in `more`)
    other matrices                       Q4_K                               Q5_K                its own
    norms, biases, all of one axis       F32                                F32                 F32

The floats F32, F16 and BF16 have no such choice: all matrices get them. A row that is no multiple of 256 weights takes, in
place of a K-quant, the next format with blocks of 32, and if it is no multiple of 32 either, F16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ops.blocks import FORMATS
from ops.errors import OptionError

from .config import Config

# What a model may be quantised to, and the format of most of its matrices.
BASE = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0",
    "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
FOR_SHORT_ROWS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def tensor_types(config: Config, shapes: Mapping[str, tuple[int, ...]], ftype: str) -> dict[str, str]:
    """The name of each tensor's block format, for all tensors of a model by their GGUF names.

    ftype: a key of BASE, in either case. Raises OptionError for another.
    """
    file_type = ftype.upper()
    if file_type not in BASE:
        raise OptionError(f"no type '{ftype}' to quantise to: choose one of {', '.join(BASE)}")
    output = "output.weight" if "output.weight" in shapes else "token_embd.weight"  # tied: the embedding is the output too
    types = {}
    for name, shape in shapes.items():
        if not is_quantized(name, shape):
            types[name] = "F32"
        elif file_type in FLOATS:
            types[name] = file_type
        else:
            wanted = _output_type(config, file_type, shape) if name == output else _matrix_type(config, file_type, name)
            types[name] = fitting(wanted, shape[-1])
    return types


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Matrices are; norms and biases are small, and stay as they are."""
    return len(shape) > 1 and name.endswith("weight") and not name.endswith("_norm.weight")


def fitting(type: str, n: int) -> str:
    """The type, or what takes its place in rows of n weights that its blocks do not divide."""
    for candidate in (type, FOR_SHORT_ROWS.get(type, type)):
        if n % FORMATS[candidate].block_size == 0:
            return candidate
    return "F16"


def more_bits(i: int, n_layer: int) -> bool:
    """Is layer i one of those that get more bits?"""
    eighth = n_layer // 8
    return i < eighth or i >= 7 * n_layer // 8 or (i - eighth) % 3 == 2


def _output_type(config: Config, file_type: str, shape: tuple[int, ...]) -> str:
    short = shape[-1] % FORMATS[BASE[file_type]].block_size != 0
    return "Q8_0" if config.arch == "falcon" or file_type == "Q8_0" or short else "Q6_K"


def _matrix_type(config: Config, file_type: str, name: str) -> str:
    base, n_layer = BASE[file_type], config.n_layer
    place = re.fullmatch(r"blk\.(\d+)\.(attn_v|attn_qkv|ffn_down)\.weight", name)
    if place is None or file_type not in ("Q4_K_M", "Q5_K_M"):
        return base
    i = int(place[1])
    if place[2] == "ffn_down" and config.arch == "falcon" and file_type == "Q4_K_M":
        if i < n_layer // 16:
            return "Q6_K"
        return "Q5_K" if more_bits(i, n_layer) else base
    if more_bits(i, n_layer):
        return "Q6_K"
    # eight query heads share a head of values: small matrices that matter (LLaMA of 65B has 80 layers too, and Falcon of 180B)
    is_70b = n_layer == 80 and (config.arch == "qwen2" or (config.arch == "llama" and config.n_head != config.n_head_kv))
    return "Q5_K" if is_70b and base == "Q4_K" and place[2] != "ffn_down" else base
