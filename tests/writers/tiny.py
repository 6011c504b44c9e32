"""A tiny LLaMA with random weights, for the writers of this folder to put into files of every format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]


@dataclass
class TinyLlama:
    """Sizes of a model, its vocabulary (LLaMA's kind, SentencePiece) and `weights`: float32 by GGUF's names.

    A weight is [outputs, inputs]. Rows of attn_q and attn_k are in Meta's order, GGUF's too: rope
    turns components 2i and 2i+1.
    """

    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 4
    n_layer: int = 2
    n_ff: int = 192  # what LLaMA's rule makes of n_embd = 64 with multiple_of = 32
    n_ctx: int = 64
    eps: float = 1e-6  # what the files of spring 2023 leave unsaid
    rope_freq_base: float = 10000.0
    seed: int = 0
    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        letters = [*"abcdefghijklmnopqrstuvwxyz.,", "th", "he", "in", "er", "an", "the", "and", "ing", "▁t", "▁the", "▁and"]
        normal = ["▁", *letters]
        self.tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *normal]
        self.scores = [0.0] * 259 + [float(-rank) for rank in range(len(normal))]
        types = gguf.TokenType
        self.kinds = [types.UNKNOWN, *[types.CONTROL] * 2, *[types.BYTE] * 256, *[types.NORMAL] * len(normal)]
        rng = np.random.default_rng(self.seed)
        n, ff, kv = self.n_embd, self.n_ff, self.n_embd // self.n_head * self.n_head_kv

        def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
            return rng.standard_normal((rows, columns), np.float32) * np.float32(gain / columns**0.5)

        def norm() -> NDArray[np.float32]:
            return np.float32(1) + np.float32(0.3) * rng.standard_normal(n, np.float32)

        self.weights["token_embd.weight"] = rng.standard_normal((self.n_vocab, n), np.float32) * np.float32(0.4)
        for i in range(self.n_layer):
            self.weights |= {
                f"blk.{i}.attn_norm.weight": norm(),
                f"blk.{i}.attn_q.weight": matrix(n, n, 1.5),
                f"blk.{i}.attn_k.weight": matrix(kv, n, 1.5),
                f"blk.{i}.attn_v.weight": matrix(kv, n),
                f"blk.{i}.attn_output.weight": matrix(n, n),
                f"blk.{i}.ffn_norm.weight": norm(),
                f"blk.{i}.ffn_gate.weight": matrix(ff, n),
                f"blk.{i}.ffn_up.weight": matrix(ff, n),
                f"blk.{i}.ffn_down.weight": matrix(n, ff),
            }
        self.weights |= {"output_norm.weight": norm(), "output.weight": matrix(self.n_vocab, n, 2.5)}

    @property
    def n_vocab(self) -> int:
        return len(self.tokens)


def write_gguf(path: Path, tiny: TinyLlama, stored: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> None:
    """By the `gguf` package: the file that the other formats' logits are compared with. Norms stay float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(tiny.n_ctx)
    writer.add_embedding_length(tiny.n_embd)
    writer.add_block_count(tiny.n_layer)
    writer.add_feed_forward_length(tiny.n_ff)
    writer.add_head_count(tiny.n_head)
    writer.add_head_count_kv(tiny.n_head_kv)
    writer.add_layer_norm_rms_eps(tiny.eps)
    writer.add_rope_freq_base(tiny.rope_freq_base)
    writer.add_rope_dimension_count(tiny.n_embd // tiny.n_head)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tiny.tokens)
    writer.add_token_types(tiny.kinds)
    writer.add_token_scores(tiny.scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in tiny.weights.items():
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else stored
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
