"""A byte-level vocabulary in which any two bytes merge: where a text is cut into words shows in its ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel


def dense_vocabulary(pre: str) -> dict[str, Any]:
    """GGUF metadata: 256 bytes, all their 65536 pairs in a scattered order of merging, two control tokens."""
    bytes_ = sorted(ByteLevel.alphabet())
    scattered = [i * 40503 % 65536 for i in range(65536)]  # an odd factor meets every pair once
    pairs = [f"{bytes_[i // 256]} {bytes_[i % 256]}" for i in scattered]
    tokens = [*bytes_, *(pair.replace(" ", "") for pair in pairs), "<|begin|>", "<|end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (len(tokens) - 2) + [3, 3], np.int32),
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }
