"""LLaMA, Mistral and Qwen2 in Hugging Face's names: config.json to GGUF's metadata, and the tensors with their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ops.blocks import FORMATS
from ops.errors import ModelError
from ops.tensor import Tensor

from .huggingface_weights import Weight, pairs_beside
from .json_object import JsonObject
from .rope_scaling import rope_metadata

EMBEDDING = "model.embed_tokens.weight"
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


class Llama:
    """What a folder of this family says. arch: GGUF's name, llama or qwen2; Mistral is a llama there.

    ModelError for a variant whose equations are not architectures/llama.py's, FormatError for nonsense.
    """

    def __init__(self, config: JsonObject, arch: str) -> None:
        if (activation := config.text("hidden_act", default="silu")) != "silu":
            raise ModelError(f"{config.source}: the activation {activation[:80]!r} (hidden_act) is not supported, only silu is")
        self.n_embd = config.size("hidden_size")
        self.n_layer = config.size("num_hidden_layers")
        self._n_ff = config.size("intermediate_size")
        self._n_head = config.size("num_attention_heads")
        self._n_head_kv = config.size("num_key_value_heads", default=self._n_head)
        self._head_dim = config.size("head_dim", default=max(self.n_embd // self._n_head, 1))
        if self._head_dim % 2:
            raise config.error(f"a head has {self._head_dim} components, but rope turns pairs of them; the file is damaged")
        self._tied = config.flag("tie_word_embeddings", default=False)
        self._rows_move = arch == "llama"  # of q and k; GGUF leaves qwen2's in transformers' order
        rope, factors = rope_metadata(config, arch, self._head_dim)
        self.made = {} if factors is None else {"rope_freqs.weight": _float32("rope_freqs.weight", factors)}
        self.metadata: dict[str, Any] = {
            "general.architecture": arch,
            f"{arch}.context_length": config.size("max_position_embeddings", default=2048),
            f"{arch}.embedding_length": self.n_embd,
            f"{arch}.block_count": self.n_layer,
            f"{arch}.feed_forward_length": self._n_ff,
            f"{arch}.attention.head_count": self._n_head,
            f"{arch}.attention.head_count_kv": self._n_head_kv,
            f"{arch}.attention.key_length": self._head_dim,
            f"{arch}.attention.value_length": self._head_dim,
            f"{arch}.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", default=1e-6),
            **rope,
        }
        if "sliding_window" in config and config.flag("use_sliding_window", default=arch != "qwen2"):
            self.metadata[f"{arch}.attention.sliding_window"] = config.size("sliding_window")

    def weights(self, n_vocab: int) -> Iterator[Weight]:
        n, ff = self.n_embd, self._n_ff
        q, kv = self._n_head * self._head_dim, self._n_head_kv * self._head_dim
        products = {
            "self_attn.q_proj": ("attn_q", q, n),
            "self_attn.k_proj": ("attn_k", kv, n),
            "self_attn.v_proj": ("attn_v", kv, n),
            "self_attn.o_proj": ("attn_output", n, q),
            "mlp.gate_proj": ("ffn_gate", ff, n),
            "mlp.up_proj": ("ffn_up", ff, n),
            "mlp.down_proj": ("ffn_down", n, ff),
        }
        pairs = pairs_beside(self._head_dim)
        yield Weight(EMBEDDING, "token_embd.weight", (n_vocab, n))
        for i in range(self.n_layer):
            for stored, name in NORMS.items():
                yield Weight(f"model.layers.{i}.{stored}.weight", f"blk.{i}.{name}.weight", (n,))
            for stored, (name, rows, columns) in products.items():
                order = pairs if self._rows_move and name in ("attn_q", "attn_k") else None
                stored, name = f"model.layers.{i}.{stored}", f"blk.{i}.{name}"
                yield Weight(f"{stored}.weight", f"{name}.weight", (rows, columns), order=order)
                yield Weight(f"{stored}.bias", f"{name}.bias", (rows,), optional=True, order=order)
        yield Weight("model.norm.weight", "output_norm.weight", (n,))
        if not self._tied:
            yield Weight("lm_head.weight", "output.weight", (n_vocab, n))


def _float32(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, values.shape, FORMATS["F32"], values.view(np.uint8)[None])
