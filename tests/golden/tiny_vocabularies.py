"""Two vocabularies of some 300 tokens, one of each kind that LLaMA's descendants use. They can write any text."""

from __future__ import annotations

from typing import Any

import gguf
from tokenizers.pre_tokenizers import ByteLevel

LETTERS = [*"abcdefghijklmnopqrstuvwxyz.,"]
PIECES = ["th", "he", "in", "er", "an", "re", "nd", "on", "at", "ing", "the", "and"]


def sentencepiece_vocabulary() -> dict[str, Any]:
    """LLaMA's kind: specials, the 256 bytes, letters, and pieces whose score says which are merged first."""
    pieces = ["\u2581", *LETTERS, *PIECES, *("\u2581" + p for p in ("t", "a", "the", "and"))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    return {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces],
        "types": [*kinds, *[gguf.TokenType.NORMAL] * len(pieces)],
        "scores": [0.0] * len(kinds) + [float(-rank) for rank in range(len(pieces))],
        "bos": 1,
        "eos": 2,
        "add_bos": True,
    }


def byte_pair_vocabulary() -> dict[str, Any]:
    """Qwen's kind, GPT-2's BPE: the 256 bytes as printable characters, what merges make of them, then specials."""
    merges = ["t h", "h e", "i n", "e r", "a n", "r e", "n d", "in g", "th e", "an d", "\u0120 the", "\u0120 and"]
    characters = sorted(ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in merges]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*characters, *merged, *specials]
    n_plain = len(tokens) - len(specials)
    return {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "merges": merges,
        "types": [*[gguf.TokenType.NORMAL] * n_plain, *[gguf.TokenType.CONTROL] * len(specials)],
        "bos": n_plain,
        "eos": n_plain + 2,
        "add_bos": False,
    }
