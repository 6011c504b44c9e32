"""LLaMA (Touvron et al. 2023), its equations in their order.

The same lines run on arrays, step by step in a debugger, and on the Values of a graph, which is how a model is built.
`w` maps a tensor's name in the file to the tensor; `cache(kind)` gives the keys or the values of the layer we are in.
Comments at line ends give shapes: T tokens in this step, S positions in sight (those before, and these), U rows of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ops import (
    add,
    add_bias,
    attention_mix,
    attention_scores,
    causal_mask,
    embedding,
    get_rows,
    kv_write,
    layer,
    matmul,
    merge_heads,
    mul,
    rmsnorm,
    rope,
    silu,
    softmax,
    split_heads,
)

from ..config import Config

Weights = Mapping[str, Any]
Cache = Callable[[str, int], Any]  # ("k" or "v", layer) -> the buffer


def llama(cfg: Config, w: Weights, cache: Cache, tokens: Any, positions: Any, out_ids: Any, *, neox: bool = False) -> Any:
    """Logits [U, n_vocab] of the tokens at `out_ids`.   tokens, positions: int [T]; out_ids: int [U]"""
    x = embedding(tokens, w["token_embd.weight"], name="inp_embd")  # [T, n_embd]
    for i in range(cfg.n_layer):
        with layer(i):
            h = rmsnorm(x, w[f"blk.{i}.attn_norm.weight"], eps=cfg.norm_eps, name="attn_norm")
            h = attention(cfg, i, w, cache, h, positions, neox)
            if i == cfg.n_layer - 1:  # no later layer looks at the other rows: only those whose logits are wanted go on
                x, h = get_rows(x, out_ids, name="x_out"), get_rows(h, out_ids, name="h_out")  # [U, n_embd]
            x = add(x, h, name="ffn_inp")
            h = rmsnorm(x, w[f"blk.{i}.ffn_norm.weight"], eps=cfg.norm_eps, name="ffn_norm")
            x = add(x, feed_forward(i, w, h), name="l_out")
    x = rmsnorm(x, w["output_norm.weight"], eps=cfg.norm_eps, name="result_norm")
    output = "output" if "output.weight" in w else "token_embd"  # tied: the embedding read the other way round
    return linear(w, output, x, "result_output")  # [U, n_vocab]


def attention(cfg: Config, i: int, w: Weights, cache: Cache, x: Any, positions: Any, neox: bool) -> Any:
    q = split_heads(linear(w, f"blk.{i}.attn_q", x, "q"), h=cfg.n_head, name="q_heads")  # [T, n_head, d]
    k = split_heads(linear(w, f"blk.{i}.attn_k", x, "k"), h=cfg.n_head_kv, name="k_heads")  # [T, n_head_kv, d]
    v = split_heads(linear(w, f"blk.{i}.attn_v", x, "v"), h=cfg.n_head_kv, name="Vcur")
    q = rope(q, positions, w["rope_freqs"], neox=neox, name="Qcur")
    k = rope(k, positions, w["rope_freqs"], neox=neox, name="Kcur")
    kqv = attend(cfg, i, cache, q, k, v, positions)
    return linear(w, f"blk.{i}.attn_output", merge_heads(kqv, name="kqv_out"), "attn_out")  # [T, n_embd]


def attend(cfg: Config, i: int, cache: Cache, q: Any, k: Any, v: Any, positions: Any) -> Any:
    """softmax(q k' / sqrt(d)) v: each token's queries look at the keys and values up to its own."""
    keys = kv_write(cache("k", i), k, positions, name="k_cache")  # [S, n_head_kv, d]
    values = kv_write(cache("v", i), v, positions, name="v_cache")

    kq = attention_scores(q, keys, name="kq")  # [n_head, T, S]
    kq = causal_mask(kq, positions, scale=cfg.n_embd_head_k**-0.5, name="kq_masked")
    return attention_mix(softmax(kq, name="kq_soft_max"), values, name="kqv")  # [T, n_head, d]


def feed_forward(i: int, w: Weights, x: Any) -> Any:
    gate = silu(linear(w, f"blk.{i}.ffn_gate", x, "ffn_gate"), name="ffn_silu")  # [T, n_ff]
    up = linear(w, f"blk.{i}.ffn_up", x, "ffn_up")
    return linear(w, f"blk.{i}.ffn_down", mul(gate, up, name="ffn_gate_par"), "ffn_out")  # [T, n_embd]


def linear(w: Weights, tensor: str, x: Any, name: str) -> Any:
    """The product with a weight, and its bias where the file has one."""
    if f"{tensor}.bias" not in w:
        return matmul(x, w[f"{tensor}.weight"], name=name)
    return add_bias(matmul(x, w[f"{tensor}.weight"], name=f"{name}_mm"), w[f"{tensor}.bias"], name=name)


def tensors(cfg: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor this architecture can read, with its shape: [outputs, inputs] for a product's weight."""
    n, ff = cfg.n_embd, cfg.n_ff
    q, k = cfg.n_head * cfg.n_embd_head_k, cfg.n_head_kv * cfg.n_embd_head_k
    v, mixed = cfg.n_head_kv * cfg.n_embd_head_v, cfg.n_head * cfg.n_embd_head_v
    products = {
        "attn_q": (q, n), "attn_k": (k, n), "attn_v": (v, n), "attn_output": (n, mixed),
        "ffn_gate": (ff, n), "ffn_up": (ff, n), "ffn_down": (n, ff),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (cfg.n_vocab, n)}
    for i in range(cfg.n_layer):
        shapes |= {f"blk.{i}.{norm}.weight": (n,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in products.items()}
        shapes |= {f"blk.{i}.{name}.bias": shape[:1] for name, shape in products.items()}
    return shapes | {
        "output_norm.weight": (n,),
        "output.weight": (cfg.n_vocab, n),
        "rope_freqs.weight": (cfg.n_rot // 2,),
    }


def optional(tensor: str) -> bool:
    """May a file do without it? Biases, llama3's frequency factors, and the output matrix (then the embedding serves)."""
    return tensor.endswith(".bias") or tensor in ("output.weight", "rope_freqs.weight")
