"""The tiny models: each differs from the others in what an engine can get wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import GGMLQuantizationType as Q


@dataclass
class Variant:
    """`config`: what differs from BASE; `types`: how matrices are stored, the first whose key is part of the name.

    pre: whose byte-level vocabulary it has, or "" for LLaMA's SentencePiece.
    """

    config: dict[str, Any]
    types: dict[str, Q]
    arch: str = "llama"
    pre: str = ""
    model_type: str = ""  # in transformers, where it is not called as in GGUF


# What all have in common, unless they say otherwise. An eps so large that another one shows.
BASE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": True,
}
VARIANTS = {
    "llama-mha": Variant({"num_key_value_heads": 4, "tie_word_embeddings": False}, {"": Q.F16}),
    "llama-gqa-tied": Variant(  # 6 query heads on 2 key heads: repeating the key heads in the wrong order shows
        {"hidden_size": 48, "num_attention_heads": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
        {"attn": Q.F32, "": Q.F16},
    ),
    "llama-bias": Variant({"attention_bias": True}, {"": Q.F32}),
    "llama-linear": Variant(
        {
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
        },
        {"": Q.BF16},
    ),
    "llama-llama3": Variant(
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
            # Wavelengths of this base and head size 16: 6, 15, 35, 84 ... 2650 positions. Those below 32/4 stay, those
            # above 32 become 8 times as long, the one between by less: 48 positions see the difference.
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        {"": Q.F16},
    ),
    "llama-head-dim": Variant({"head_dim": 16}, {"": Q.F32}),
    "llama-q": Variant(
        {"hidden_size": 64, "intermediate_size": 256, "rms_norm_eps": 1e-2, "tie_word_embeddings": False},
        {
            "token_embd": Q.Q8_0,
            "attn_q": Q.Q4_0,
            "attn_k": Q.Q8_0,
            "attn_v": Q.Q5_0,
            "attn_output": Q.Q4_1,
            "ffn_gate": Q.Q4_0,
            "ffn_up": Q.Q8_0,
            "blk.0.ffn_down": Q.Q6_K,
            "blk.1.ffn_down": Q.Q4_K,
            "output": Q.Q5_1,
        },
    ),
    "qwen2": Variant({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"": Q.F32}, arch="qwen2", pre="qwen2"),
    # The generations of LLaMA, and Mistral, in the way of their first releases
    "llama-1": Variant(
        {"num_key_value_heads": 4, "intermediate_size": 96, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}, {"": Q.F16}
    ),
    "llama-2": Variant(  # 70B's: eight query heads on one of keys and values
        {"num_attention_heads": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}, {"": Q.F16}
    ),
    "llama-3": Variant(
        {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"": Q.F16},
        pre="llama-bpe",
    ),
    "mistral": Variant(  # each position sees 60 others at most: more than any prompt here has
        {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": 60, "intermediate_size": 112},
        {"": Q.F16},
        model_type="mistral",
    ),
    "falcon-7b": Variant(  # five heads of 8, one of keys and values
        {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "intermediate_size": 160},
        {"attn": Q.F32, "": Q.F16},
        arch="falcon",
        pre="falcon",
    ),
    "falcon-40b": Variant(
        {
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_attention_heads": 8,
            "new_decoder_architecture": True,
            "tie_word_embeddings": False,
        },
        {
            "token_embd": Q.Q8_0,
            "blk.0.attn_qkv": Q.Q4_0,
            "attn_qkv": Q.Q5_1,
            "attn_output": Q.Q5_1,
            "ffn_up": Q.Q8_0,
            "blk.0.ffn_down": Q.Q6_K,
            "blk.1.ffn_down": Q.Q4_K,
            "output": Q.Q5_0,
        },
        arch="falcon",
        pre="falcon",
    ),
    "falcon-180b": Variant(  # other ratios: three query heads on each of two, and not four times the width in between
        {
            "hidden_size": 48,
            "intermediate_size": 128,
            "num_attention_heads": 6,
            "new_decoder_architecture": True,
            "tie_word_embeddings": False,
        },
        {"": Q.BF16},
        arch="falcon",
        pre="falcon",
    ),
}
