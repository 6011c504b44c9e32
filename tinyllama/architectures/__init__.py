"""The architectures that run here, by the name that a file gives in `general.architecture`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ops.errors import ModelError
from ops.tensor import Tensor

from ..config import Config, config_from
from . import falcon, llama

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A family: its equations, and the tensors they need."""

    config: Callable[[Mapping[str, Any], int], Config]  # (metadata, n_vocab): read and checked
    equations: Callable[..., Any]  # (cfg, w, cache, tokens, positions, out_ids) -> logits
    tensors: Callable[[Config], dict[str, tuple[int, ...]]]  # by name with shape: every one that a file may hold
    optional: Callable[[str], bool]  # may a file do without it?
    weights: Callable[[Config, Tensors], Tensors] = lambda cfg, tensors: tensors  # what the equations read, of the file's


ARCHITECTURES = {
    "llama": Architecture(config_from, llama.llama, llama.tensors, llama.optional),
    # LLaMA's equations, with the pairs of rope apart
    "qwen2": Architecture(config_from, partial(llama.llama, neox=True), llama.tensors, llama.optional),
    "falcon": Architecture(
        partial(config_from, norm_eps="layer_norm_epsilon"), falcon.falcon, falcon.tensors, falcon.optional, falcon.weights
    ),
}


def architecture(name: str) -> Architecture:
    """ModelError names an architecture that is not known, and those that are."""
    if name not in ARCHITECTURES:
        raise ModelError(f"architecture '{name}' is not supported; supported are {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name]
