"""The folders in which Meta gave out LLaMA 1, 2 and 3: params.json, consolidated.00.pth and so on, tokenizer.model.

A .pth file is one GPU's share of the model (model parallelism: Shoeybi et al. 2019, Megatron-LM, section 3). A product whose
outputs are shared out is cut into rows, one whose inputs are into columns, the embedding into columns by LLaMA 1 and 2 and into
rows by LLaMA 3; norms are whole in every file. Rows of wq and wk stand in the order that GGUF wants, so nothing moves.
Source of names, cuts and the keys of params.json: model.py of Meta's llama and llama-models, and fairscale's layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops.blocks import FORMATS
from ops.errors import FormatError
from ops.tensor import Tensor

from .file_bytes import Check
from .joined_rows import below, beside
from .json_object import JsonObject, read_object
from .model_file import ModelFile
from .other_files import is_there
from .rope_scaling import rope_metadata
from .sentencepiece_model import sentencepiece_metadata
from .tiktoken_model import tiktoken_metadata
from .torch_pickle import read_torch

WHOLE = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
OF_A_LAYER = {
    "attention_norm": "attn_norm", "attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v",
    "attention.wo": "attn_output", "ffn_norm": "ffn_norm", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}  # fmt: skip
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # general.file_type of GGUF
CUT_INTO_COLUMNS = ("attn_output", "ffn_down")
# rope's frequencies, which follow from params.json; LLaMA 1 has them in each layer, as attention.inner_attention.rope.freqs
COMPUTED = "rope.freqs"
_NAME = re.compile(r"(?:layers\.(\d+)\.)?(.+)\.weight")


def read_meta(folder: Path, *, mmap: bool = True) -> ModelFile:
    """Open one of Meta's folders. Tensors are views of the mapped files, or rows put together from several when asked for.

    FormatError: a file is missing, damaged, or does not fit the others; ModelError: a tokenizer that is not known here;
    OSError: a file cannot be read.
    """
    params = read_object(folder / "params.json")
    shards, checks = _shards(folder, params, mmap)
    tensors = {}
    for stored in shards[0]:
        if not stored.endswith(COMPUTED):
            name = _gguf_name(folder, stored)
            tensors[name] = _joined(folder, stored, name, [shard[stored] for shard in shards], params.size("dim"))
    embedding, gate = (_required(folder, tensors, name) for name in ("token_embd.weight", "blk.0.ffn_gate.weight"))
    metadata = _sizes(folder, params, n_ff=gate.shape[0]) | _tokenizer(folder, n_vocab=embedding.shape[0])
    metadata["general.file_type"] = FILE_TYPES[gate.format.name]
    n_layers = len({name.split(".")[1] for name in tensors if name.startswith("blk.")})
    if n_layers != params.size("n_layers"):
        raise params.error(f"n_layers is {params.size('n_layers')}, but the .pth files hold {n_layers} layers")
    rope, factors = rope_metadata(_rope(params), "llama", params.size("dim") // params.size("n_heads"))
    if factors is not None:
        name = "rope_freqs.weight"
        tensors[name] = Tensor(name, factors.shape, FORMATS["F32"], factors.view("u1")[None])

    def check() -> None:
        for check_shard in checks:
            check_shard()

    format = f"Meta's .pth, {len(shards)} part{'s' if len(shards) > 1 else ''}"
    return ModelFile(folder, format, metadata | rope, tensors, mmap, check)


def _shards(folder: Path, params: JsonObject, mmap: bool) -> tuple[list[Mapping[str, Tensor]], list[Check]]:
    """The tensors of each file. How many files there are is told by the first one's share of wq's rows."""
    first = _shard(folder, 0)
    tensors, check = read_torch(first, mmap=mmap)
    shards: list[Mapping[str, Tensor]] = [tensors]
    checks = [check]
    share = _required(folder, tensors, "layers.0.attention.wq.weight").shape[0]
    n_shards, rest = divmod(params.size("dim"), share)
    if rest:
        raise FormatError(f"{first}: wq has {share} rows, which is no share of dim = {params.size('dim')} in params.json")
    for i in range(1, n_shards):
        path = _shard(folder, i, n_shards)
        tensors, check = read_torch(path, mmap=mmap)
        if _forms(tensors) != _forms(shards[0]):
            raise FormatError(f"{path}: this part and {first.name} do not belong to one model; put all parts of one together")
        shards.append(tensors)
        checks.append(check)
    return shards, checks


def _shard(folder: Path, i: int, n: int = 1) -> Path:
    path = folder / f"consolidated.{i:02d}.pth"
    if not is_there(path):
        if is_there(folder / "consolidated.safetensors"):
            raise FormatError(
                f"{folder}: its weights are in consolidated.safetensors, as in Mistral's folders of today, which are not read; "
                "take the model's Hugging Face folder, or a GGUF file of it"
            )
        whole = f"one of {n} parts of the model" if n > 1 else "the first part of the model"
        raise FormatError(f"{folder}: the folder lacks {path.name}, {whole}; download it too")
    return path


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.format) for name, tensor in tensors.items()}


def _required(folder: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors or len(tensors[name].shape) != 2:
        raise FormatError(f"{folder}: its .pth files have no matrix {name}; they are no LLaMA model's")
    return tensors[name]


def _gguf_name(folder: Path, stored: str) -> str:
    match = _NAME.fullmatch(stored)
    layer, name = match.groups() if match else (None, "")
    known = (WHOLE if layer is None else OF_A_LAYER).get(name)
    if known is None:
        raise FormatError(
            f"{folder}: its .pth files hold a tensor {stored[:80]!r}, which LLaMA does not have; it is another model"
        )
    return f"{known}.weight" if layer is None else f"blk.{int(layer)}.{known}.weight"


def _joined(folder: Path, stored: str, name: str, parts: list[Tensor], dim: int) -> Tensor:
    """The whole of a tensor, of which every file has a share of the same shape."""
    first, n = parts[0], len(parts)
    if len(first.shape) == 1 or n == 1:
        return Tensor(name, first.shape, first.format, first.data)
    if len(first.shape) != 2:
        raise FormatError(f"{folder}: tensor {stored!r} has {len(first.shape)} dimensions, and LLaMA's have one or two")
    rows, columns = first.shape
    shares = [part.data for part in parts]
    by_columns = columns * n == dim if name == "token_embd.weight" else name.split(".")[-2] in CUT_INTO_COLUMNS
    if by_columns:
        return Tensor(name, (rows, columns * n), first.format, beside(shares))
    return Tensor(name, (rows * n, columns), first.format, below(shares))


def _sizes(folder: Path, params: JsonObject, n_ff: int) -> dict[str, Any]:
    """n_ff: that of the weights; params.json gives it by a rule (multiple_of, ffn_dim_multiplier)."""
    return {
        "general.architecture": "llama",
        "general.name": folder.absolute().name,
        "llama.context_length": _context_length(params),
        "llama.embedding_length": params.size("dim"),
        "llama.block_count": params.size("n_layers"),
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": params.size("n_heads"),
        "llama.attention.head_count_kv": params.size("n_kv_heads", default=params.size("n_heads")),
        "llama.attention.layer_norm_rms_epsilon": params.number("norm_eps"),
    }


def _context_length(params: JsonObject) -> int:
    """Positions of the training, which only some of the files tell; the others are known by what else they say.

    LLaMA 1: 2048, 2: 4096, Code Llama: 16384, 3: 8192, 3.1: 131072 (their papers and model cards; the marks of the first three
    are those of llama.cpp's convert.py, save that LLaMA 1's 65B has the eps of LLaMA 2, and its heads).
    """
    base, scaled = params.number("rope_theta", default=10000.0), params.flag("use_scaled_rope", default=False)
    if base == 1e6:
        guess = 16384
    elif base == 5e5:
        guess = 131072 if scaled else 8192
    else:
        is_65b = params.size("n_layers") == 80 and "n_kv_heads" not in params
        guess = 4096 if params.number("norm_eps") == 1e-5 and not is_65b else 2048
    return params.size("max_seq_len", default=guess)


def _rope(params: JsonObject) -> JsonObject:
    """As a config.json of Hugging Face would say it. The numbers are those of Meta's llama-models, model.py, `apply_scaling`;
    that code has 8 for all sizes, but the small models of LLaMA 3.2 are published with 32 (their config.json)."""
    rope: dict[str, Any] = {"rope_theta": params.number("rope_theta", default=10000.0)}
    if params.flag("use_scaled_rope", default=False):
        factor = params.number("rope_scaling_factor", default=32 if params.size("dim") < 4096 else 8)
        scaling = {"factor": factor, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
        rope["rope_scaling"] = {"rope_type": "llama3", **scaling}
    return JsonObject(params.source, rope)


def _tokenizer(folder: Path, n_vocab: int) -> dict[str, Any]:
    """tokenizer.model lies in the folder, or in the one above, which LLaMA 1's sizes shared."""
    above = folder.absolute().parent
    path = next((place / "tokenizer.model" for place in (folder, above) if is_there(place / "tokenizer.model")), None)
    if path is None:
        raise FormatError(f"{folder}: neither this folder nor the one above has a tokenizer.model; put the model's there")
    with path.open("rb") as file:
        is_message = file.read(1) == b"\n"  # SentencePiece's first field; a line of base64 begins otherwise
    metadata = sentencepiece_metadata(path) if is_message else tiktoken_metadata(path)
    if (n_tokens := len(metadata["tokenizer.ggml.tokens"])) != n_vocab:
        raise FormatError(f"{path}: the tokenizer has {n_tokens} tokens and the model {n_vocab}; they do not belong together")
    return metadata
