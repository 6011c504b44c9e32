"""The tiny models: each differs from the others in what an engine can get wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import GGMLQuantizationType as Q


@dataclass
class Variant:
    """`config`: what differs from BASE; `types`: how matrices are stored, the first whose key is part of the name."""

    config: dict[str, Any]
    types: dict[str, Q]
    arch: str = "llama"


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
    "qwen2": Variant({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"": Q.F32}, arch="qwen2"),
}
