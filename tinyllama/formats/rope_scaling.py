"""How fast rope turns, as a config.json of Hugging Face says it: a base, and one of several ways to stretch a context."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.errors import ModelError

from .json_object import JsonObject

MAX_HEAD = 2**16  # components of a head; real ones have up to 256


def rope_metadata(config: JsonObject, arch: str, head_dim: int) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Metadata by GGUF's keys, and for llama3's scaling what each frequency is divided by: float32[head_dim / 2].

    Newer files have it all in `rope_parameters`, older ones `rope_theta` beside `rope_scaling`.
    ModelError: a scaling that this engine cannot compute.
    """
    rope = config.object("rope_parameters", "rope_scaling")
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise ModelError(f"{rope.source}: rope differs from layer to layer, which is not supported")
    base = rope.number("rope_theta", default=config.number("rope_theta", default=10000.0))
    metadata: dict[str, Any] = {f"{arch}.rope.freq_base": base, f"{arch}.rope.dimension_count": head_dim}
    if rope.number("partial_rotary_factor", default=config.number("partial_rotary_factor", default=1.0)) != 1:
        raise ModelError(
            f"{config.source}: rope turns a part of each head only (partial_rotary_factor), which is not supported"
        )
    kind = rope.text("rope_type", "type", default="default")
    if kind == "linear":
        metadata |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": rope.number("factor")}
    elif kind == "llama3":
        return metadata, _llama3_factors(rope, base, head_dim)
    elif kind != "default":
        raise ModelError(
            f"{rope.source}: rope scaling of the type {kind[:80]!r} is not supported; known are default, linear and llama3"
        )
    return metadata, None


def _llama3_factors(rope: JsonObject, base: float, head_dim: int) -> NDArray[np.float32]:
    """What LLaMA 3.1 divides each frequency by: fast ones by 1, slow ones by `factor`, those between by something between.

    A wave of w positions, of which the context of the training held n = original / w:
        1 if n > high_freq_factor, factor if n < low_freq_factor, otherwise 1 / (s + (1 - s) / factor)
        where s = (n - low_freq_factor) / (high_freq_factor - low_freq_factor)
    Source: transformers, modeling_rope_utils.py, `_compute_llama3_parameters`.
    """
    factor, low, high = rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor")
    original = rope.size("original_max_position_embeddings")
    if head_dim > MAX_HEAD:
        raise rope.error(f"a head of {head_dim} components is larger than the {MAX_HEAD} that are the limit")
    with np.errstate(all="ignore"):  # nonsense from a damaged file gives nonsense, not a warning
        n_waves = original * base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * math.pi)
        s = (n_waves - low) / (high - low) if high != low else np.zeros_like(n_waves)
        between = 1 / (s + (1 - s) / factor)
        return np.where(n_waves > high, 1, np.where(n_waves < low, factor, between)).astype(np.float32)
