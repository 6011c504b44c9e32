"""The sizes and constants of a model, read from its metadata and checked before anything is built from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ops.errors import ModelError

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_1, some F16", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip   # general.file_type: llama.cpp's enum llama_ftype


@dataclass(frozen=True)
class Config:
    """Names as llama.cpp prints them. Sizes in elements, frequencies in radians a position."""

    arch: str
    name: str  # the model's own, may be empty
    ftype: str  # the type of most weights, as the file calls it
    n_vocab: int
    n_ctx_train: int  # positions it was trained on, or its sliding window if that is shorter
    n_swa: int | None  # sliding window: positions that a token sees, its own the last; None: it sees all before it
    n_embd: int
    n_head: int
    n_head_kv: int
    n_layer: int
    n_ff: int
    n_rot: int  # components of a head that rope turns
    n_embd_head_k: int
    n_embd_head_v: int
    norm_eps: float  # what keeps RMSNorm and LayerNorm from dividing by zero
    rope_freq_base: float
    rope_freq_scale: float  # 1 / the factor of linear scaling


def config_from(metadata: Mapping[str, Any], n_vocab: int, *, norm_eps: str = "layer_norm_rms_epsilon") -> Config:
    """Read a decoder's config. ModelError names a key that is missing, holds nonsense, or asks for what is not supported.

    norm_eps: the key under which the architecture's files keep that number.
    """
    read = _Reader(metadata)
    arch = read.text("general.architecture")
    n_embd = read.size(f"{arch}.embedding_length")
    n_head = read.size(f"{arch}.attention.head_count")
    n_head_kv = read.size(f"{arch}.attention.head_count_kv", n_head)
    if n_head % n_head_kv:
        raise ModelError(f"{arch}.attention.head_count = {n_head} is no multiple of head_count_kv = {n_head_kv}")
    head_dim = read.size(f"{arch}.attention.key_length", n_embd // n_head)
    n_rot = read.size(f"{arch}.rope.dimension_count", head_dim)
    if n_rot > head_dim or n_rot % 2:
        raise ModelError(f"{arch}.rope.dimension_count = {n_rot} must be even and at most the head's {head_dim}")
    if read.number(f"{arch}.expert_count", 0):
        raise ModelError(f"this {arch} model is a mixture of experts ({arch}.expert_count), which is not supported")
    for key in metadata:
        if key.startswith(f"{arch}.") and "alibi" in key and read.number(key):  # attention.max_alibi_bias
            raise ModelError(f"this {arch} model tells positions by ALiBi ({key}), which is not supported: those with rope are")
    n_ctx = read.size(f"{arch}.context_length")
    n_swa = int(read.number(f"{arch}.attention.sliding_window", 0)) or None
    return Config(
        arch=arch,
        name=read.text("general.name", ""),
        ftype=FILE_TYPES.get(int(read.number("general.file_type", -1)), "unknown"),
        n_vocab=n_vocab,
        n_ctx_train=min(n_ctx, n_swa or n_ctx),
        n_swa=n_swa,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_layer=read.size(f"{arch}.block_count"),
        n_ff=read.size(f"{arch}.feed_forward_length"),
        n_rot=n_rot,
        n_embd_head_k=head_dim,
        n_embd_head_v=read.size(f"{arch}.attention.value_length", n_embd // n_head),
        norm_eps=read.number(f"{arch}.attention.{norm_eps}"),
        rope_freq_base=read.number(f"{arch}.rope.freq_base", 10000.0),
        rope_freq_scale=1.0 / read.rope_factor(arch),
    )


class _Reader:
    """Typed look-ups in metadata, with an error that names the key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ModelError(f"the model's {key} is {value!r}, expected text")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, (np.ndarray, list)) and len(set(map(str, value))) == 1:
            value = value[0]  # the same for every layer
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ModelError(f"the model's {key} is {value!r}, expected one number") from None
        if not math.isfinite(number) or (number < 0 and default != -1):
            raise ModelError(f"the model's {key} is {number}, expected a finite number, zero or more")
        return number

    def size(self, key: str, default: int | None = None) -> int:
        number = self.number(key, default)
        if number < 1 or number != int(number):
            raise ModelError(f"the model's {key} is {number:g}, expected a whole number of at least 1")
        return int(number)

    def rope_factor(self, arch: str) -> float:
        """What linear scaling divides positions by (Chen et al. 2023, arXiv 2306.15595); 1 without it."""
        kind = self.text(f"{arch}.rope.scaling.type", "linear")
        if kind not in ("linear", "none"):
            raise ModelError(f"{arch}.rope.scaling.type is '{kind}', which is not supported; known are linear and none")
        old = self.number(f"{arch}.rope.scale_linear", 1.0)  # the key of 2023
        factor = self.number(f"{arch}.rope.scaling.factor", old) if kind == "linear" else 1.0
        if factor == 0:  # some converters write 0 for "not scaled"
            return 1.0
        return factor

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(key, default)
        if value is None:
            raise ModelError(f"the model's metadata has no {key}")
        return value
