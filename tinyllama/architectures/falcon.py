"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867), its equations in their order: 7B, 40B and 180B.

What differs from LLaMA: attention and feed-forward read the same x side by side, and both are added to it; all query heads
share one head of keys and values (7B), or eight of them (40B, 180B); LayerNorm, GELU and two products take the place of
RMSNorm and the gated three; no product has a bias. docs/falcon.md goes through them one by one.

Shapes at line ends as in llama.py: T tokens in this step, U rows of logits, d components of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ops import add, embedding, gelu, get_rows, layer, layernorm, matmul, merge_heads, rope, split_heads
from ops.tensor import MadeRows, Tensor

from ..config import Config
from .llama import Cache, Weights, attend


def falcon(cfg: Config, w: Weights, cache: Cache, tokens: Any, positions: Any, out_ids: Any) -> Any:
    """Logits [U, n_vocab] of the tokens at `out_ids`.   tokens, positions: int [T]; out_ids: int [U]"""
    x = embedding(tokens, w["token_embd.weight"], name="inp_embd")  # [T, n_embd]
    for i in range(cfg.n_layer):
        with layer(i):
            for_mlp = for_attention = norm(cfg, w, f"blk.{i}.attn_norm", x, "attn_norm")
            if f"blk.{i}.attn_norm_2.weight" in w:  # 40B and 180B: a norm for each
                for_attention = norm(cfg, w, f"blk.{i}.attn_norm_2", x, "attn_norm_2")
            h = attention(cfg, i, w, cache, for_attention, positions)
            if i == cfg.n_layer - 1:  # no later layer looks at the other rows: only those whose logits are wanted go on
                x, h = get_rows(x, out_ids, name="x_out"), get_rows(h, out_ids, name="h_out")  # [U, n_embd]
                for_mlp = get_rows(for_mlp, out_ids, name="mlp_out")
            x = add(x, add(h, feed_forward(i, w, for_mlp), name="attn_ffn"), name="l_out")
    x = norm(cfg, w, "output_norm", x, "result_norm")
    output = "output" if "output.weight" in w else "token_embd"  # tied: the embedding read the other way round
    return matmul(x, w[f"{output}.weight"], name="result_output")  # [U, n_vocab]


def norm(cfg: Config, w: Weights, tensor: str, x: Any, name: str) -> Any:
    return layernorm(x, w[f"{tensor}.weight"], w[f"{tensor}.bias"], eps=cfg.norm_eps, name=name)


def attention(cfg: Config, i: int, w: Weights, cache: Cache, x: Any, positions: Any) -> Any:
    qkv = f"blk.{i}.attn_qkv.weight"
    q = split_heads(matmul(x, w[f"{qkv}[q]"], name="q"), h=cfg.n_head, name="q_heads")  # [T, n_head, d]
    k = split_heads(matmul(x, w[f"{qkv}[k]"], name="k"), h=cfg.n_head_kv, name="k_heads")  # [T, n_head_kv, d]
    v = split_heads(matmul(x, w[f"{qkv}[v]"], name="v"), h=cfg.n_head_kv, name="Vcur")
    q = rope(q, positions, w["rope_freqs"], neox=True, name="Qcur")
    k = rope(k, positions, w["rope_freqs"], neox=True, name="Kcur")
    kqv = attend(cfg, i, cache, q, k, v, positions)
    return matmul(merge_heads(kqv, name="kqv_out"), w[f"blk.{i}.attn_output.weight"], name="attn_out")  # [T, n_embd]


def feed_forward(i: int, w: Weights, x: Any) -> Any:
    up = matmul(x, w[f"blk.{i}.ffn_up.weight"], name="ffn_up")  # [T, n_ff]
    return matmul(gelu(up, name="ffn_gelu"), w[f"blk.{i}.ffn_down.weight"], name="ffn_out")  # [T, n_embd]


def tensors(cfg: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor this architecture can read, with its shape: [outputs, inputs] for a product's weight."""
    n, ff = cfg.n_embd, cfg.n_ff
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (cfg.n_vocab, n)}
    for i in range(cfg.n_layer):
        shapes |= {f"blk.{i}.{name}.{part}": (n,) for name in ("attn_norm", "attn_norm_2") for part in ("weight", "bias")}
        shapes |= {
            f"blk.{i}.attn_qkv.weight": (sum(_qkv(cfg)), n),
            f"blk.{i}.attn_output.weight": (n, cfg.n_head * cfg.n_embd_head_v),
            f"blk.{i}.ffn_up.weight": (ff, n),
            f"blk.{i}.ffn_down.weight": (n, ff),
        }
    return shapes | {"output_norm.weight": (n,), "output_norm.bias": (n,), "output.weight": (cfg.n_vocab, n)}


def optional(tensor: str) -> bool:
    """May a file do without it? The second norm, which 7B has not, and the output matrix (then the embedding serves)."""
    return "attn_norm_2" in tensor or tensor == "output.weight"


def weights(cfg: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, attn_qkv seen as three: the rows of all queries, then of all keys, then of all values.

    This order is llama.cpp's ("jploski", by the name of who chose it); in Hugging Face's files the rows of each group of
    heads that share keys and values lie together.
    """
    seen = {}
    for name, tensor in tensors.items():
        if name.endswith(".attn_qkv.weight"):
            stop = 0
            for part, n_rows in zip("qkv", _qkv(cfg), strict=True):
                start, stop = stop, stop + n_rows
                seen[f"{name}[{part}]"] = _rows(tensor, f"{name}[{part}]", start, stop)
        else:
            seen[name] = tensor
    return seen


def _qkv(cfg: Config) -> tuple[int, int, int]:
    """Rows of attn_qkv that make queries, keys, values."""
    return cfg.n_head * cfg.n_embd_head_k, cfg.n_head_kv * cfg.n_embd_head_k, cfg.n_head_kv * cfg.n_embd_head_v


def _rows(tensor: Tensor, name: str, start: int, stop: int) -> Tensor:
    """Some rows of a matrix, as a tensor of their own that copies nothing."""
    data = tensor.data
    if isinstance(data, MadeRows):
        shape = stop - start, data.shape[1]
        rows: Any = MadeRows(shape, lambda wanted: data[np.arange(start, stop)[wanted]], data.sources)
    else:
        rows = data[start:stop]
    return Tensor(name, (stop - start, tensor.shape[1]), tensor.format, rows)
