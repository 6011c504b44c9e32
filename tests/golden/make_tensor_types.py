"""Which type llama.cpp's own quantiser gives each tensor, for models of several architectures, depths and row lengths.

    pip install llama-cpp-python==0.3.36 gguf
    python tests/golden/make_tensor_types.py       # rewrites tests/data/tensor_types.json

The quantiser looks at metadata and at row lengths, and loads no model: matrices of two rows of zeros do. (One with a single
row counts as a vector.)

tensor_types.json has for each model its metadata, the shapes of its tensors (`*` for a layer's number), and for each file
type the types it gives: one for all layers, or a list with one for each layer.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

TARGET = Path(__file__).parent.parent / "data" / "tensor_types.json"
FTYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18,
    "BF16": 32,
}  # fmt: skip   # llama.h: enum llama_ftype


def model(arch: str, n_layer: int, n_head: int, n_head_kv: int, n: int = 256, ff: int = 512, **more: Any) -> dict[str, Any]:
    """more: `tied` without an output matrix, `bias` with biases of the projections."""
    shapes = {"token_embd.weight": [2, n], "output_norm.weight": [n]}
    if not more.get("tied"):
        shapes["output.weight"] = [2, n]
    names = {"attn_output": n, "ffn_up": n, "ffn_down": ff}
    names |= {"attn_qkv": n} if arch == "falcon" else {"attn_q": n, "attn_k": n, "attn_v": n, "ffn_gate": n}
    shapes |= {f"blk.*.{name}.weight": [2, row] for name, row in names.items()} | {"blk.*.attn_norm.weight": [n]}
    if arch == "falcon":
        shapes |= {"blk.*.attn_norm.bias": [n], "output_norm.bias": [n]}
    if more.get("bias"):
        shapes |= {f"blk.*.attn_{name}.bias": [n] for name in "qkv"}
    return {"arch": arch, "n_layer": n_layer, "n_head": n_head, "n_head_kv": n_head_kv, "shapes": shapes}


MODELS = {
    "llama-7b": model("llama", 32, 32, 32),
    "llama-65b": model("llama", 80, 64, 64),
    "llama2-70b": model("llama", 80, 64, 8),
    "mistral-7b": model("llama", 32, 32, 8),
    "tied": model("llama", 22, 8, 2, tied=True),
    "smollm2-135m": model("llama", 30, 9, 3, 576, 1536, tied=True),  # rows that are no multiple of 256
    "odd rows": model("llama", 3, 4, 4, 48, 112),  # nor of 32
    "one layer": model("llama", 1, 4, 4),
    "qwen2": model("qwen2", 24, 14, 2, tied=True, bias=True),
    "80 layers of qwen2": model("qwen2", 80, 64, 8, bias=True),
    "falcon-7b": model("falcon", 32, 71, 1, 4544, 18176),
    "falcon-40b": model("falcon", 60, 128, 8),
    "falcon tied": model("falcon", 9, 4, 1, tied=True),
}


def write(path: Path, described: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, described["arch"])
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(described["n_layer"])
    writer.add_feed_forward_length(512)
    writer.add_head_count(described["n_head"])
    writer.add_head_count_kv(described["n_head_kv"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(2)
    writer.add_tokenizer_model("no_vocab")
    for name, shape in described["shapes"].items():
        for i in range(described["n_layer"] if "*" in name else 1):
            writer.add_tensor(name.replace("*", str(i)), np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types_of(path: Path, names: list[str]) -> dict[str, str | list[str]]:
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    layers: defaultdict[str, list[str]] = defaultdict(list)
    n = len(types)
    for name in names:
        for i in range(n):
            if (in_layer := name.replace("*", str(i))) in types:
                layers[name].append(types[in_layer])
            if "*" not in name or in_layer not in types:
                break
    return {name: all_of[0] if len(set(all_of)) == 1 else all_of for name, all_of in layers.items()}


def main() -> None:
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, described in MODELS.items():
            source = Path(folder, "f32.gguf")
            write(source, described)
            types = {}
            for ftype, number in FTYPES.items():
                target = Path(folder, f"{ftype}.gguf")
                params = llama_cpp.llama_model_quantize_default_params()
                params.ftype, params.nthread = number, 1
                failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
                assert not failed, (name, ftype)
                types[ftype] = types_of(target, list(described["shapes"]))
            made[name] = described | {"types": types}
    TARGET.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
