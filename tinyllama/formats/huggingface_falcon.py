"""Falcon in Hugging Face's names, those of transformers and of the code that came with the first models (RW)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ops.errors import ModelError

from .huggingface_weights import Weight, queries_keys_values
from .json_object import JsonObject
from .rope_scaling import rope_metadata

EMBEDDING = "transformer.word_embeddings.weight"


class Falcon:
    """What a folder of this family says.

    ModelError for a variant whose equations are not architectures/falcon.py's, FormatError for nonsense.
    """

    made: dict[str, Any] = {}  # noqa: RUF012 (no tensor is computed from the config)

    def __init__(self, config: JsonObject, arch: str) -> None:
        self.n_embd = config.size("hidden_size", "n_embed")
        self.n_layer = config.size("num_hidden_layers", "n_layer")
        self._n_ff = config.size("ffn_hidden_size", default=4 * self.n_embd)
        self._n_head = config.size("num_attention_heads", "n_head")
        grouped = config.flag("new_decoder_architecture", default="n_head_kv" in config)
        _check(config, grouped)
        several = grouped or not config.flag("multi_query", default=True)
        self._n_head_kv = config.size("num_kv_heads", "n_head_kv", default=self._n_head) if several else 1
        self._head_dim, rest = divmod(self.n_embd, self._n_head)
        if rest or self._n_head % self._n_head_kv or self._head_dim % 2:
            raise config.error(
                f"a hidden_size of {self.n_embd} does not go with {self._n_head} heads, "
                f"of which {self._n_head_kv} of keys and values; the file is damaged"
            )
        self._two_norms = config.size("num_ln_in_parallel_attn", default=2 if grouped else 1) == 2
        self._tied = config.flag("tie_word_embeddings", default=False)
        self._may_be_tied = "tie_word_embeddings" not in config  # transformers' default is true, and yet files hold both
        rope, factors = rope_metadata(config, arch, self._head_dim)
        if factors is not None:
            raise ModelError(f"{config.source}: rope scaling of the type llama3 is not supported for falcon models")
        self.metadata: dict[str, Any] = {
            "general.architecture": arch,
            f"{arch}.context_length": config.size("max_position_embeddings", default=2048),
            f"{arch}.embedding_length": self.n_embd,
            f"{arch}.block_count": self.n_layer,
            f"{arch}.feed_forward_length": self._n_ff,
            f"{arch}.attention.head_count": self._n_head,
            f"{arch}.attention.head_count_kv": self._n_head_kv,
            f"{arch}.attention.layer_norm_epsilon": config.number("layer_norm_epsilon", default=1e-5),
            f"{arch}.tensor_data_layout": "jploski",  # llama.cpp's name for the order of attn_qkv's rows
            **rope,
        }

    def weights(self, n_vocab: int) -> Iterator[Weight]:
        n, ff = self.n_embd, self._n_ff
        norms = {"ln_mlp": "attn_norm", "ln_attn": "attn_norm_2"} if self._two_norms else {"input_layernorm": "attn_norm"}
        qkv = (self._n_head + 2 * self._n_head_kv) * self._head_dim
        order = queries_keys_values(self._n_head, self._n_head_kv, self._head_dim)
        products = {
            "self_attention.query_key_value": ("attn_qkv", (qkv, n), order if self._n_head_kv > 1 else None),
            "self_attention.dense": ("attn_output", (n, n), None),
            "mlp.dense_h_to_4h": ("ffn_up", (ff, n), None),
            "mlp.dense_4h_to_h": ("ffn_down", (n, ff), None),
        }
        yield Weight(EMBEDDING, "token_embd.weight", (n_vocab, n))
        for i in range(self.n_layer):
            for stored, name in norms.items():
                for part in ("weight", "bias"):
                    yield Weight(f"transformer.h.{i}.{stored}.{part}", f"blk.{i}.{name}.{part}", (n,))
            for stored, (name, shape, order_of_rows) in products.items():
                yield Weight(f"transformer.h.{i}.{stored}.weight", f"blk.{i}.{name}.weight", shape, order=order_of_rows)
        for part in ("weight", "bias"):
            yield Weight(f"transformer.ln_f.{part}", f"output_norm.{part}", (n,))
        if not self._tied:
            yield Weight("lm_head.weight", "output.weight", (n_vocab, n), optional=self._may_be_tied)


def _check(config: JsonObject, grouped: bool) -> None:
    """Falcon's files can ask for more than Falcon 7B, 40B and 180B do (falcon-rw does)."""
    for wrong, what in (
        (config.flag("alibi", default=False), "tells positions by ALiBi (alibi), and only those with rope are"),
        (config.flag("bias", default=False), "has biases in its products (bias), and only those without are"),
        (
            not grouped and not config.flag("parallel_attn", default=True),
            "computes attention before the feed-forward (parallel_attn is false), and only those that compute both at once are",
        ),
        (config.text("activation", default="gelu") != "gelu", "has another activation than gelu, and only those with it are"),
    ):
        if wrong:
            raise ModelError(f"{config.source}: this falcon model {what} supported")
