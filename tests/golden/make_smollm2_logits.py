"""What PyTorch computes from a real model: SmolLM2-135M-Instruct, as the weights lie quantised in a GGUF file.

    pip install torch transformers gguf tokenizers
    python tests/golden/make_smollm2_logits.py SmolLM2-135M-Instruct.Q4_1.gguf

rewrites tests/data/smollm2_logits.npz. The `gguf` package reads and dequantises the file, the model is transformers'
LlamaForCausalLM built from the file's metadata, and `tokenizers` reads the prompts with the file's vocabulary: none of
it is this project's code. The model (HuggingFaceTB, Apache-2.0) is not copied; the numbers hold for that file only.

    names, sample_ids, sha256           the prompts, the ids in NAME/sample, and of the file; then for every prompt NAME
    NAME/text       str
    NAME/tokens     int32[T]
    NAME/last       float32[n_vocab]    logits at the last position, all of them
    NAME/sample     float32[T, 1500]    logits at every position, of the ids in sample_ids
    NAME/top_ids    int32[T, 32]        the most likely ids at every position, best first,
    NAME/top        float32[T, 32]      and their logits
    NAME/max_abs    float32[T]          max |logit| over the whole vocabulary
    NAME/greedy     int32[64]           what follows when the best is always taken (an end of text ends nothing here),
    NAME/greedy_gap float32[64]         and by how much its logit beat the second

The model runs in float64 (`.double()`), which takes some minutes; the results are rounded to float32. What float32 is
left in it: see make_tiny_models.py.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from make_tiny_models import uninterleave
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

TARGET = Path(__file__).parent.parent / "data" / "smollm2_logits.npz"
N_SAMPLE, N_TOP, N_GREEDY = 1500, 32, 64

PROMPTS = {
    "prose": "It was the third winter of the war, and in the village by the frozen river nobody spoke any more of",
    "code": "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "chat": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nName two planets.<|im_end|>\n<|im_start|>assistant\n"
    ),
    "world": "Привет! 今日は 🦙🎉 — ça va très bien, n'est-ce pas?",
    "numbers": "The years 1969, 1989 and 2007: 3.14159 * 2 = 6.283, and",
}


def tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """GPT-2's byte-level BPE; SmolLM's own tokenizer.json also splits numbers into digits before anything else."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return made


def torch_model(reader: gguf.GGUFReader, metadata: dict[str, Any]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    state = {}
    for hf_name, _ in model.named_parameters():
        weight = stored.pop(names.get_name(hf_name, try_suffixes=(".weight",)))
        if "q_proj" in hf_name:
            weight = uninterleave(weight, config.num_attention_heads)
        if "k_proj" in hf_name:
            weight = uninterleave(weight, config.num_key_value_heads)
        state[hf_name] = torch.from_numpy(np.array(weight, np.float32))
    assert not stored, f"tensors left over: {list(stored)}"
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.double()


@torch.inference_mode()
def golden(model: LlamaForCausalLM, tokens: list[int], sample_ids: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    step = model(torch.tensor([tokens]), use_cache=True)
    logits = step.logits[0].numpy()
    top_ids = np.argsort(-logits, axis=-1, kind="stable")[:, :N_TOP]
    greedy, gaps, last = [], [], logits[-1]
    for _ in range(N_GREEDY):
        second, best = np.argsort(last)[-2:]
        greedy.append(best)
        gaps.append(last[best] - last[second])
        step = model(torch.tensor([[best]]), cache=step.cache, use_cache=True)
        last = step.logits[0, -1].numpy()
    return {
        "tokens": np.array(tokens, np.int32),
        "last": logits[-1].astype(np.float32),
        "sample": logits[:, sample_ids].astype(np.float32),
        "top_ids": top_ids.astype(np.int32),
        "top": np.take_along_axis(logits, top_ids, axis=-1).astype(np.float32),
        "max_abs": np.abs(logits).max(axis=-1).astype(np.float32),
        "greedy": np.array(greedy, np.int32),
        "greedy_gap": np.array(gaps, np.float32),
    }


def main() -> None:
    path = Path(sys.argv[1])
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    encoder, model = tokenizer(metadata), torch_model(reader, metadata)
    rng = np.random.default_rng(0)
    sample_ids = np.sort(rng.choice(metadata["llama.vocab_size"], N_SAMPLE, replace=False)).astype(np.int32)
    arrays = {
        "names": np.array(list(PROMPTS)),
        "sample_ids": sample_ids,
        "sha256": np.array(hashlib.sha256(path.read_bytes()).hexdigest()),
    }
    for name, text in PROMPTS.items():
        tokens = encoder.encode(text).ids
        result = golden(model, tokens, sample_ids)
        arrays |= {f"{name}/{key}": array for key, array in result.items()}
        arrays[f"{name}/text"] = np.array(text)
        print(f"{name}: {len(tokens)} tokens, smallest gap {result['greedy_gap'].min():.4f}")
        print(repr(encoder.decode(result["greedy"].tolist(), skip_special_tokens=False)))
    np.savez(TARGET, **arrays)
    print(TARGET.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
