"""Files of llama2.c, field by field as karpathy/llama2.c, export.py and tokenizer.py write them."""

from __future__ import annotations

import math
from copy import copy
from pathlib import Path
from struct import pack

import numpy as np
from numpy.typing import NDArray

from .tiny import TinyLlama

Array = NDArray[np.float32]


def write_tokenizer(path: Path, tiny: TinyLlama) -> None:
    texts = [token.replace("\u2581", " ").encode() for token in tiny.tokens]
    texts[1:3] = b"\n<s>\n", b"\n</s>\n"
    rows = (pack("<fi", score, len(text)) + text for text, score in zip(texts, tiny.scores, strict=True))
    path.write_bytes(pack("<i", max(map(len, texts))) + b"".join(rows))


def write_llama2c(path: Path, tiny: TinyLlama, version: int, group_size: int = 32) -> None:
    """With tokenizer.bin beside it. The output matrix is written if the model has one."""
    shared = "output.weight" not in tiny.weights
    vocabulary = -tiny.n_vocab if version == 0 and not shared else tiny.n_vocab
    sizes = pack("<7i", tiny.n_embd, tiny.n_ff, tiny.n_layer, tiny.n_head, tiny.n_head_kv, vocabulary, tiny.n_ctx)
    w = tiny.weights

    def layers(*names: str) -> list[Array]:
        return [w[f"blk.{i}.{name}.weight"] for name in names for i in range(tiny.n_layer)]

    attention, mlp = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_down", "ffn_up")
    embedding, norm = w["token_embd.weight"], w["output_norm.weight"]
    output = [] if shared else [w["output.weight"]]
    if version == 0:
        head = tiny.n_embd // tiny.n_head
        angles = np.outer(np.arange(tiny.n_ctx), tiny.rope_freq_base ** (-np.arange(0, head, 2) / head))
        rope = [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]
        order = [embedding, *layers("attn_norm", *attention, "ffn_norm", *mlp), norm, *rope, *output]
        content = sizes + b"".join(weight.astype("<f4").tobytes() for weight in order)
    else:
        flags = pack("<?", shared) + (pack("<i", group_size) if version == 2 else b"")
        norms, matrices = [*layers("attn_norm", "ffn_norm"), norm], [embedding, *layers(*attention, *mlp), *output]
        content = (pack("<Ii", 0x616B3432, version) + sizes + flags).ljust(256, b"\0")
        content += b"".join(weight.astype("<f4").tobytes() for weight in norms)
        for weight in matrices:
            if version == 1:
                content += weight.astype("<f4").tobytes()
            else:
                quants, scales = quantized(weight, group_size)
                content += quants.tobytes() + scales.astype("<f4").tobytes()
    path.write_bytes(content)
    write_tokenizer(path.with_name("tokenizer.bin"), tiny)


def quantized(weight: Array, group_size: int) -> tuple[NDArray[np.int8], Array]:
    """int8[groups, group_size] and float32[groups]: export.py's `quantize_q80`."""
    groups = weight.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    return np.rint(groups / scales[:, None]).astype(np.int8), scales


def as_stored(tiny: TinyLlama, group_size: int) -> TinyLlama:
    """The model that a file of version 2 holds: quantised and back."""
    stored = copy(tiny)
    stored.weights = dict(tiny.weights)
    for name, weight in tiny.weights.items():
        if weight.ndim == 2:
            quants, scales = quantized(weight, group_size)
            stored.weights[name] = (quants.astype(np.float32) * scales[:, None]).reshape(weight.shape)
    assert all(math.isfinite(weight.sum()) for weight in stored.weights.values())
    return stored
