"""From a model file to the graph of its architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.blocks import FORMATS
from ops.errors import ModelError
from ops.graph import Graph, Value
from ops.tensor import Tensor

from .architectures import Architecture, architecture
from .config import Config
from .formats.model_file import ModelFile


@dataclass(frozen=True)
class Built:
    config: Config
    graph: Graph
    leaves: Mapping[str, Tensor]  # what stays the same from step to step: weights and constants


def build(file: ModelFile) -> Built:
    """The graph of the file's model.

    ModelError: an architecture that is not known, a tensor missing or of the wrong shape, or one that no equation reads.
    """
    arch = architecture(str(file.metadata.get("general.architecture", "(none named)")))
    config = arch.config(file.metadata, _n_vocab(file))
    weights = arch.weights(config, _checked(file, arch, config))
    freqs = rope_frequencies(config, weights.get("rope_freqs.weight"))
    leaves = {**weights, "rope_freqs": Tensor("rope_freqs", freqs.shape, FORMATS["F32"], freqs.view(np.uint8)[None])}
    graph = Graph()
    logits = arch.equations(
        config,
        _Leaves(file, graph, leaves),
        lambda kind, i: cache_leaf(graph, config, kind, i),
        graph.leaf("tokens", ("T",), "int"),
        graph.leaf("positions", ("T",), "int"),
        graph.leaf("out_ids", ("U",), "int"),
    )
    graph.outputs = [logits]
    _none_unread(file, config, weights.keys() - graph.leaves.keys() - {"rope_freqs.weight"})  # which became rope_freqs
    return Built(config, graph, {name: leaf for name, leaf in leaves.items() if name in graph.leaves})


def cache_leaf(graph: Graph, config: Config, kind: str, i: int) -> Value:
    """cache_k_l0 and so on: C places, of which a step sees the first S."""
    d = config.n_embd_head_k if kind == "k" else config.n_embd_head_v
    return graph.leaf(f"cache_{kind}_l{i}", ("C", config.n_head_kv, d))


def rope_frequencies(config: Config, factors: Tensor | None) -> NDArray[np.float32]:
    """float32[n_rot / 2], radians a position: base^(-2i/n_rot)                                 Su et al. 2021, eq. 15

    Linear scaling turns slower by one factor (Chen et al. 2023); LLaMA 3.1 by one factor a frequency, which its files
    carry as `rope_freqs.weight`.
    """
    i = np.arange(0, config.n_rot, 2, dtype=np.float64)
    with np.errstate(all="ignore"):  # nonsense from a damaged file gives nonsense, not a warning
        freqs = config.rope_freq_base ** (-i / config.n_rot) * config.rope_freq_scale
        return (freqs if factors is None else freqs / factors.dequantize()).astype(np.float32)


def _n_vocab(file: ModelFile) -> int:
    if (table := file.tensors.get("token_embd.weight")) is None:
        raise ModelError(f"{file.path.name} has no tensor token_embd.weight: it holds a vocabulary or no model at all")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != table.shape[0]:
        raise ModelError(f"{file.path.name} has {len(tokens)} tokens, but token_embd.weight has {table.shape[0]} rows")
    return table.shape[0]


def _checked(file: ModelFile, arch: Architecture, config: Config) -> dict[str, Tensor]:
    """The tensors the architecture reads, each of the shape it must have."""
    if config.n_layer > len(file.tensors):  # before a damaged number becomes a long loop
        raise ModelError(f"{config.arch}.block_count is {config.n_layer}, but the file has {len(file.tensors)} tensors")
    found, known = {}, arch.tensors(config)
    _none_unread(file, config, file.tensors.keys() - known.keys())
    for name, shape in known.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            if not arch.optional(name):
                raise ModelError(f"{file.path.name} lacks the tensor {name}, which {config.arch} models have")
        elif tensor.shape != shape:
            raise ModelError(f"{file.path.name}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        else:
            found[name] = tensor
    return found


def _none_unread(file: ModelFile, config: Config, unread: Set[str]) -> None:
    """The model was trained with it: without it logits would be wrong, and nothing would tell."""
    if unread:
        raise ModelError(
            f"{file.path.name} has the tensor {min(unread)}, which {config.arch} models as computed here do not read: "
            "this is a variant that is not supported"
        )


class _Leaves(Mapping[str, Value]):
    """What an architecture's equations take for weights: looking one up makes the graph's leaf."""

    def __init__(self, file: ModelFile, graph: Graph, leaves: Mapping[str, Tensor]) -> None:
        self._file, self._graph, self._leaves = file, graph, leaves

    def __contains__(self, name: object) -> bool:
        return name in self._leaves

    def __getitem__(self, name: str) -> Value:
        if name not in self._leaves:  # one that others it has make necessary
            raise ModelError(f"{self._file.path.name} lacks the tensor {name}: download or convert the model again")
        shape = self._leaves[name].shape
        return self._graph.leaf(name, shape, "weight" if len(shape) > 1 else "float")

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)
