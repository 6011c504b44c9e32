"""ggml, ggmf and ggjt: the files of llama.cpp before GGUF, spring and summer of 2023. LLaMA only.

ggjt files are mapped: their data begins at multiples of 32 bytes. ggml and ggmf files are read into memory, since their data
begins anywhere (docs/ggjt.md tells why that matters). What these files leave unsaid is filled in with what llama.cpp's code
of that time took for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.tensor import MadeRows, Tensor

from .file_bytes import Check, file_bytes, nothing_to_check
from .ggml_blocks import halves_from_pairs
from .ggml_file import GgmlFile, Place
from .ggml_parts import joined, scan_parts
from .ggml_vocabulary import vocabulary
from .joined_rows import Rows
from .model_file import ModelFile

NAMES = {"tok_embeddings.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "output.weight": "output.weight"}
NAMES_IN_A_LAYER = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
EPS, N_CTX = 1e-6, 2048  # LLaMA's; the former was a constant of ggml_rms_norm
EPS_OF_LLAMA_2, N_CTX_OF_LLAMA_2 = 1e-5, 4096


def read_ggml(path: Path, *, mmap: bool = True) -> ModelFile:
    """Open a ggml, ggmf or ggjt file, with its further parts if it is the first of several.

    mmap: tensors of a ggjt file are views of the mapped file, or made from one; without, and of ggml and ggmf, the file is
    read into memory at once. Raises FormatError for whatever is wrong with the content, OSError if a file cannot be opened.
    """
    parts = scan_parts(path)
    first = parts[0]
    names = _gguf_names(first)
    mapped = mmap and first.container == "ggjt"
    opened = [_opened(part, mapped) for part in parts]
    tensors = {}
    for name in first.places:
        places = [part.places[name] for part in parts]
        whole = joined(name, places, [_rows(data(place), place) for (data, _), place in zip(opened, places, strict=True)])
        if whole is None:
            raise first.error(f"the parts of tensor {name!r} do not fit together; one of the files is damaged")
        dims, rows = whole
        tensors[names[name]] = Tensor(names[name], tuple(reversed(dims)), places[0].format, rows)
    metadata = {**_sizes(first, tensors), **vocabulary(first.texts, first.scores), "ggml.n_parts": len(parts)}

    def check() -> None:
        for _, part_check in opened:
            part_check()

    return ModelFile(path, first.format, metadata, tensors, mapped, check)


def _gguf_names(file: GgmlFile) -> dict[str, str]:
    """GGUF's name of each tensor. FormatError: a tensor is missing, or is none of LLaMA's."""
    n_layer = file.sizes.n_layer
    n_tensors = len(NAMES) + n_layer * len(NAMES_IN_A_LAYER)
    if len(file.places) < n_tensors:
        raise file.error(
            f"it has {len(file.places)} tensors, but LLaMA with {n_layer} layers has {n_tensors}; "
            "it is cut short or damaged: download it again"
        )
    names = NAMES | {
        f"layers.{i}.{name}.weight": f"blk.{i}.{known}.weight"
        for i in range(n_layer)
        for name, known in NAMES_IN_A_LAYER.items()
    }
    if strange := next((name for name in file.places if name not in names), None):
        raise file.error(f"tensor {strange!r} is none of LLaMA's, and ggml files of other models are not read")
    return names


def _opened(part: GgmlFile, mapped: bool) -> tuple[Callable[[Place], NDArray[np.uint8]], Check]:
    """What gives the bytes of a place in the file, and the check that they are still there."""
    if not mapped:
        return lambda place: _read(part, place), nothing_to_check
    data, check = file_bytes(part.path, mmap=True)
    if len(data) < max(place.end for place in part.places.values()):
        raise part.shrunk()
    return lambda place: data[place.start : place.end], check


def _read(part: GgmlFile, place: Place) -> NDArray[np.uint8]:
    """A tensor's data in memory of its own, which begins where a float may begin."""
    try:
        data = np.fromfile(part.path, np.uint8, place.end - place.start, offset=place.start)
    except MemoryError:
        way_out = (
            "open it with mmap on" if part.container == "ggjt" else "take the model as a ggjt or GGUF file, which are mapped"
        )
        raise part.error(f"the file does not fit into memory; {way_out}") from None
    if len(data) < place.end - place.start:
        raise part.shrunk()
    data.flags.writeable = False
    return data


def _rows(data: NDArray[np.uint8], place: Place) -> Rows:
    """A part's share of a tensor: its bytes as they lie, or rows made from them."""
    shape = place.n_rows, place.row_bytes
    blocks = data.reshape(shape)
    if not place.stored.in_pairs:
        return blocks
    return MadeRows(shape, lambda rows: halves_from_pairs(blocks[rows], place.format), (blocks,))


def _sizes(file: GgmlFile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model's sizes by GGUF's keys. FormatError if the header's do not agree with the tensors."""
    sizes = file.sizes
    n_ff = tensors["blk.0.ffn_gate.weight"].shape[0]
    head_dim = sizes.n_embd // sizes.n_head
    n_head_kv = tensors["blk.0.attn_k.weight"].shape[0] // head_dim
    is_llama_2 = n_head_kv < sizes.n_head  # the 70B, whose n_ff is not by the rule
    by_rule = -(-(2 * (4 * sizes.n_embd) // 3) // sizes.n_mult) * sizes.n_mult  # Meta's llama/model.py, FeedForward
    if n_ff != by_rule and not is_llama_2:
        raise file.error(
            f"n_embd = {sizes.n_embd} and n_mult = {sizes.n_mult} make n_ff = {by_rule}, but feed_forward.w1 has {n_ff} rows; "
            "the file is damaged"
        )
    return {
        "general.architecture": "llama",
        "general.file_type": sizes.ftype,
        "llama.context_length": N_CTX_OF_LLAMA_2 if is_llama_2 else N_CTX,
        "llama.embedding_length": sizes.n_embd,
        "llama.block_count": sizes.n_layer,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": sizes.n_head,
        "llama.attention.head_count_kv": n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": EPS_OF_LLAMA_2 if is_llama_2 else EPS,
        "llama.rope.dimension_count": sizes.n_rot,
        "ggml.n_mult": sizes.n_mult,
        "ggml.ftype": sizes.ftype,
    }
