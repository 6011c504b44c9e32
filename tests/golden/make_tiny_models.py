"""Tiny models of the architectures that run here, with random weights, and the logits that PyTorch computes from them.

    pip install torch transformers gguf
    python tests/golden/make_tiny_models.py        # rewrites tests/data/tiny, byte for byte the same

NAME.gguf is written by the `gguf` package, NAME.npz holds what `transformers` makes of the same weights: neither is
this project's code. Weights and words are made here, so the files are under this project's licence (MIT).

NAME.npz, for i from 0 to 3:

    prompt_i    int32[T]
    logits_i    float32[T, n_vocab]     at every position
    greedy      int32[24]               what follows prompt_2 when the most likely token is always taken,
    greedy_gap  float32[24]             and by how much the logit of each beat the second

The model runs in float64 (`.double()`), the result is rounded to float32. transformers computes the mean square of
RMSNorm and the angles of rope in float32, whatever the model's dtype: that leaves about 1e-6 of the largest logit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from numpy.typing import NDArray
from tiny_variants import BASE, VARIANTS, Variant
from tiny_vocabularies import byte_pair_vocabulary, sentencepiece_vocabulary
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

TARGET = Path(__file__).parent.parent / "data" / "tiny"
PROMPT_LENGTHS = (1, 6, 17, 48)

# Offset in a block of its float16 scales, and values for them that give weights of some +-0.1 with no mean.
# ggml-common.h: block_q6_K ends with d; block_q4_K begins with d and dmin, w = d * scale * q - dmin * minimum.
RANDOM_BLOCKS = {Q.Q6_K: {208: 4e-5}, Q.Q4_K: {0: 3e-4, 2: 2.2e-3}}

# What transformers' Falcon calls otherwise than its LLaMA
FALCON_NAMES = {
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "ffn_hidden_size",
    "rms_norm_eps": "layer_norm_epsilon",
}


def new_model(variant: Variant, n_vocab: int) -> PreTrainedModel:
    arguments = {**BASE, **variant.config, "vocab_size": n_vocab}
    if variant.arch == "falcon":
        arguments |= {new: arguments.pop(old) for old, new in FALCON_NAMES.items()}
    config = AutoConfig.for_model(variant.model_type or variant.arch, **arguments)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def random_weight(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Scaled so that logits spread over some +-8 and a query's scores over some +-4: attention looks somewhere."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        return np.float32(0.5) * noise
    if len(shape) == 1:  # of a norm
        return np.float32(1) + np.float32(0.3) * noise
    if "embed" in name:
        return np.float32(0.4) * noise
    gain = {"q_proj": 1.5, "k_proj": 1.5, "query_key_value": 1.5, "lm_head": 2.5}.get(name.split(".")[-2], 1.0)
    return noise * np.float32(gain / np.sqrt(shape[-1]))


def order_in_file(arch: str, hf_name: str, config: Any) -> NDArray[np.int64] | slice:
    """Which of transformers' rows comes where in GGUF: row i of the file is row order[i] of the parameter."""
    part = hf_name.split(".")[-2]
    if arch == "llama" and part in ("q_proj", "k_proj"):
        return interleaved(config.head_dim, config.num_attention_heads if part == "q_proj" else config.num_key_value_heads)
    if arch == "falcon" and part == "query_key_value":
        return ungrouped(config.head_dim, config.num_attention_heads, config.num_kv_heads)
    return np.s_[:]


def interleaved(head_dim: int, n_head: int) -> NDArray[np.int64]:
    """Rows of a q or k projection (or its bias) as GGUF's architecture "llama" has them.

    rope turns pairs of a head's components. transformers pairs component i with i + d/2 (NeoX), llama.cpp pairs 2i
    with 2i + 1 as Meta did, and its converter (`LlamaModel.permute` in conversion/llama.py) reorders the rows so that
    both mean the same pairs: row i goes to 2i, row i + d/2 to 2i + 1. q and k move alike: their dot products stay.
    """
    return np.arange(n_head * head_dim).reshape(n_head, 2, head_dim // 2).swapaxes(1, 2).ravel()


def ungrouped(head_dim: int, n_head: int, n_head_kv: int) -> NDArray[np.int64]:
    """Rows of Falcon's fused projection, all queries first, then all keys, then all values.

    In transformers the rows of a group lie together: those of its queries, of its key, of its value (`_split_heads` in
    modeling_falcon.py). llama.cpp's converter (`FalconModel.modify_tensors` in conversion/falcon.py) sorts them.
    """
    groups = np.arange((n_head + 2 * n_head_kv) * head_dim).reshape(n_head_kv, n_head // n_head_kv + 2, head_dim)
    return np.concatenate([part.ravel() for part in (groups[:, :-2], groups[:, -2], groups[:, -1])])


def stored(weight: NDArray[np.float32], qtype: Q, rng: np.random.Generator) -> NDArray[Any]:
    """The weight as the file holds it. `gguf` cannot quantise to Q4_K and Q6_K: their blocks themselves are random."""
    if qtype not in RANDOM_BLOCKS:
        return gguf.quantize(weight, qtype)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (weight.size // block_size, block_bytes), dtype=np.uint8)
    for offset, scale in RANDOM_BLOCKS[qtype].items():
        blocks[:, offset : offset + 2] = np.array([scale], "<f2").view(np.uint8)
    return blocks.reshape(len(weight), -1)


def convert(model: PreTrainedModel, variant: Variant, rng: np.random.Generator) -> dict[str, tuple[NDArray[Any], Q]]:
    """Give the model random weights; return them as GGUF stores them. The model keeps what is read back from that."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[variant.arch.upper()], config.num_hidden_layers)
    tensors: dict[str, tuple[NDArray[Any], Q]] = {}
    state = {}
    for hf_name, parameter in model.named_parameters():  # a tied output projection is not listed a second time
        name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        assert name is not None
        order = order_in_file(variant.arch, hf_name, config)
        weight = random_weight(hf_name, tuple(parameter.shape), rng)[order]
        qtype = Q.F32 if weight.ndim == 1 else next(t for part, t in variant.types.items() if part in name)
        data = stored(weight, qtype, rng)
        tensors[name] = data, qtype
        kept = np.empty_like(weight)
        kept[order] = gguf.dequantize(data, qtype)
        state[hf_name] = torch.from_numpy(kept)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    if config.rope_parameters["rope_type"] == "llama3":
        # What each frequency is divided by; the converter writes the same numbers (generate_extra_tensors in
        # conversion/llama.py), here they come from transformers' own frequencies with and without the scaling.
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
        plain, _ = model.model.rotary_emb.compute_default_rope_parameters(config)
        tensors["rope_freqs.weight"] = (plain / scaled).numpy(), Q.F32
    return tensors


def write_gguf(
    path: Path, variant: Variant, config: Any, vocabulary: dict[str, Any], tensors: dict[str, tuple[NDArray[Any], Q]]
) -> None:
    writer = gguf.GGUFWriter(path, variant.arch)
    writer.add_name(path.stem)
    writer.add_description("Random weights, made by tests/golden/make_tiny_models.py")
    writer.add_license("MIT")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    is_falcon = variant.arch == "falcon"
    writer.add_feed_forward_length(config.ffn_hidden_size if is_falcon else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_kv_heads if is_falcon else config.num_key_value_heads)
    if is_falcon:
        writer.add_tensor_data_layout("jploski")
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if variant.arch == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if "head_dim" in variant.config:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_tokenizer_model(vocabulary["model"])
    writer.add_tokenizer_pre(vocabulary.get("pre", "default"))
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    if "scores" in vocabulary:
        writer.add_token_scores(vocabulary["scores"])
    if "merges" in vocabulary:
        writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(vocabulary["bos"])
    writer.add_eos_token_id(vocabulary["eos"])
    writer.add_add_bos_token(vocabulary["add_bos"])
    for name, (data, qtype) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.inference_mode()
def golden(model: PreTrainedModel, vocabulary: dict[str, Any], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    def logits(tokens: NDArray[np.int32]) -> NDArray[np.float64]:
        return model(torch.from_numpy(tokens)[None].long(), use_cache=False).logits[0].numpy()

    arrays: dict[str, NDArray[Any]] = {}
    for i, length in enumerate(PROMPT_LENGTHS):
        prompt = rng.integers(3, len(vocabulary["tokens"]), length).astype(np.int32)
        prompt[0] = vocabulary["bos"]
        arrays[f"prompt_{i}"], arrays[f"logits_{i}"] = prompt, logits(prompt).astype(np.float32)
    sequence, gaps = arrays["prompt_2"], []
    for _ in range(24):
        last = logits(sequence)[-1]
        second, best = np.argsort(last)[-2:]
        gaps.append(last[best] - last[second])
        sequence = np.append(sequence, np.int32(best))
    return arrays | {"greedy": sequence[-24:], "greedy_gap": np.array(gaps, np.float32)}


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        rng = np.random.default_rng(seed)
        vocabulary = byte_pair_vocabulary() | {"pre": variant.pre} if variant.pre else sentencepiece_vocabulary()
        model = new_model(variant, len(vocabulary["tokens"]))
        tensors = convert(model, variant, rng)
        write_gguf(TARGET / f"{name}.gguf", variant, model.config, vocabulary, tensors)
        np.savez(TARGET / f"{name}.npz", **golden(model.double(), vocabulary, rng))
        print(name, (TARGET / f"{name}.gguf").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
