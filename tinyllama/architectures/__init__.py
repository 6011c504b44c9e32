"""The architectures that run here, by the name that a file gives in `general.architecture`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ops.errors import ModelError

from ..config import Config
from . import llama


@dataclass(frozen=True)
class Architecture:
    """A family: its equations, and the tensors they need."""

    equations: Callable[..., Any]  # (cfg, w, cache, tokens, positions, out_ids) -> logits
    tensors: Callable[[Config], dict[str, tuple[int, ...]]]
    optional: Callable[[str], bool]


ARCHITECTURES = {
    "llama": Architecture(llama.llama, llama.tensors, llama.optional),
    "qwen2": Architecture(partial(llama.llama, neox=True), llama.tensors, llama.optional),  # LLaMA's, rope pairs apart
}


def architecture(name: str) -> Architecture:
    """ModelError names an architecture that is not known, and those that are."""
    if name not in ARCHITECTURES:
        raise ModelError(f"architecture '{name}' is not supported; supported are {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name]
