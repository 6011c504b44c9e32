"""Folders as transformers' save_pretrained writes them; the weights by the safetensors package."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from golden.tiny_variants import BASE, VARIANTS
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from .tiny import TinyLlama
from .tokenizer_json import byte_level_tokenizer, sentencepiece_tokenizer

GOLDEN = Path(__file__).parent.parent / "data" / "tiny"
LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
FALCON_NAMES = {
    "attn_norm": "input_layernorm",  # of 7B
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
# Keys of config.json where Falcon differs from LLaMA; OLD: those of the code that came with the first models
NEW_KEYS = {
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "ffn_hidden_size",
    "rms_norm_eps": "layer_norm_epsilon",
}
OLD_KEYS = NEW_KEYS | {
    "num_key_value_heads": "n_head_kv",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def set_keys(folder: Path, file: str, **values: Any) -> None:
    """Changes keys of a JSON file, or begins one; None takes a key away."""
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (before | values).items() if value is not None}))


def stored_name(name: str) -> str:
    """transformers' name of a tensor, from GGUF's."""
    part, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", part)
    if layer is None:
        return f"{LLAMA_NAMES[part]}.{kind}"
    return f"model.layers.{layer[1]}.{LLAMA_NAMES[layer[2]]}.{kind}"


def falcon_name(name: str, two_norms: bool) -> str:
    part, _, kind = name.rpartition(".")
    names = FALCON_NAMES | ({"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"} if two_norms else {})
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", part)
    return f"{names[part]}.{kind}" if layer is None else f"transformer.h.{layer[1]}.{names[layer[2]]}.{kind}"


def halves(weight: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of q or k from Meta's order to transformers': first the even ones of each head, then the odd ones."""
    heads = weight.reshape(-1, head_dim, *weight.shape[1:])
    return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(weight.shape)


def grouped(weight: NDArray[Any], n_head: int, n_head_kv: int) -> NDArray[Any]:
    """Rows of Falcon's query_key_value: llama.cpp's order (q, k, v) to transformers': group by group."""
    d = len(weight) // (n_head + 2 * n_head_kv)
    q, k, v = np.split(weight, [n_head * d, (n_head + n_head_kv) * d])
    n_queries = n_head // n_head_kv * d
    parts = [[q[g * n_queries : (g + 1) * n_queries], k[g * d : (g + 1) * d], v[g * d : (g + 1) * d]] for g in range(n_head_kv)]
    return np.concatenate([part for group in parts for part in group])


def llama_config(tiny: TinyLlama, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": tiny.n_embd,
        "intermediate_size": tiny.n_ff,
        "num_hidden_layers": tiny.n_layer,
        "num_attention_heads": tiny.n_head,
        "num_key_value_heads": tiny.n_head_kv,
        "max_position_embeddings": tiny.n_ctx,
        "rms_norm_eps": tiny.eps,
        "rope_theta": tiny.rope_freq_base,
        "rope_scaling": None,
        "tie_word_embeddings": "output.weight" not in tiny.weights,
        "vocab_size": tiny.n_vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        **more,
    }


def write_llama(
    folder: Path, tiny: TinyLlama, *, dtype: str = "F32", n_shards: int = 1, in_halves: bool = True, **config: Any
) -> Path:
    """A folder of the model. in_halves: q and k have transformers' order; config: what differs in config.json."""
    d = tiny.n_embd // tiny.n_head
    weights = {
        stored_name(name): halves(weight, d) if in_halves and re.search(r"attn_[qk]\.", name) else weight
        for name, weight in tiny.weights.items()
    }
    write_folder(folder, weights, llama_config(tiny, **config), dtype=dtype, n_shards=n_shards)
    sentencepiece_tokenizer(tiny.tokens).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_golden(name: str, folder: Path, *, old_falcon: bool = False) -> Path:
    """The model tests/data/tiny/NAME.gguf, read by the gguf package, as transformers has it.

    old_falcon: with the names of the first Falcons.
    """
    variant = VARIANTS[name]
    reader = gguf.GGUFReader(GOLDEN / f"{name}.gguf")
    config = {**BASE, **variant.config}
    n_head, n_head_kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // n_head)
    in_groups = "new_decoder_architecture" in config
    stored = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).copy()
        if variant.arch == "falcon":
            weight = grouped(weight, n_head, n_head_kv) if "attn_qkv" in tensor.name else weight
            stored[falcon_name(tensor.name, in_groups)] = weight
        elif tensor.name != "rope_freqs.weight":
            moved = variant.arch == "llama" and re.search(r"attn_[qk]\.", tensor.name)
            stored[stored_name(tensor.name)] = halves(weight, head_dim) if moved else weight
    if variant.arch == "falcon":
        if not in_groups:
            del config["num_key_value_heads"]
        if old_falcon:
            config.pop("new_decoder_architecture", None)
        config = {(OLD_KEYS if old_falcon else NEW_KEYS).get(key, key): value for key, value in config.items()}
        config |= {"architectures": ["RWForCausalLM" if old_falcon else "FalconForCausalLM"], "alibi": False, "bias": False}
    else:
        config["architectures"] = [f"{(variant.model_type or variant.arch).capitalize()}ForCausalLM"]
    write_folder(folder, stored, config)
    tokenizer_of(reader).save(str(folder / "tokenizer.json"))
    return folder


def tokenizer_of(reader: gguf.GGUFReader) -> Tokenizer:
    """The vocabulary of tests/golden/tiny_vocabularies.py that the file has."""

    def array(key: str) -> list[Any]:
        field = reader.fields[f"tokenizer.ggml.{key}"]
        return [field.parts[i] for i in field.data]

    tokens = [bytes(part).decode() for part in array("tokens")]
    if "tokenizer.ggml.merges" not in reader.fields:
        return sentencepiece_tokenizer(tokens)
    merges = [bytes(part).decode() for part in array("merges")]
    normal = [part[0] == gguf.TokenType.NORMAL for part in array("token_type")]
    return byte_level_tokenizer(tokens, merges, tokens[sum(normal) :])


def write_folder(
    folder: Path, weights: Mapping[str, NDArray[Any]], config: Mapping[str, Any], *, dtype: str = "F32", n_shards: int = 1
) -> None:
    """config.json, and the weights in one file or in shards with their index; weights by the names in the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float64)}  # of old folders: not needed
    weights = dict(weights) | rotary
    if n_shards == 1:
        save(folder / "model.safetensors", weights, dtype)
        return
    places = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = dict(list(weights.items())[i::n_shards])
        save(folder / file, part, dtype)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def save(path: Path, weights: Mapping[str, NDArray[Any]], dtype: str = "F32") -> None:
    """By the safetensors package. numpy has no bfloat16: its bits are saved as U16, and the header corrected."""
    if dtype != "BF16":
        cast = {"F32": np.float32, "F16": np.float16}[dtype]
        save_file({name: as_dtype(w, cast) for name, w in weights.items()}, path, metadata={"format": "pt"})
        return
    bits = {name: w if w.dtype == np.float64 else bfloat16(w) for name, w in weights.items()}
    save_file(bits, path, metadata={"format": "pt"})
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b'"U16"', b'"BF16"')
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


def save_header(path: Path, header: object, n_bytes: int) -> None:
    """A file with any header, written by hand, and zeros for the data; n_bytes of them need no place on most disks."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + n_bytes)


def as_dtype(weight: NDArray[Any], dtype: Any) -> NDArray[Any]:
    return np.ascontiguousarray(weight if weight.dtype == np.float64 else weight.astype(dtype))


def bfloat16(weight: NDArray[np.float32]) -> NDArray[np.uint16]:
    return gguf.quantize(np.ascontiguousarray(weight), gguf.GGMLQuantizationType.BF16).view(np.uint16).reshape(weight.shape)


def rounded(weight: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """What is left of the weight in that dtype."""
    if dtype == "BF16":
        return (bfloat16(weight).astype(np.uint32) << 16).view(np.float32)
    return weight.astype({"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)
