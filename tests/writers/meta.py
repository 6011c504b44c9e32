"""Meta's folders. The .pth files hold the bytes that torch.save writes, put together by hand: torch is not needed.

The real torch.save wrote the files in tests/data/meta. Layouts: torch/serialization.py, Python's Lib/pickletools.py,
sentencepiece_model.proto; how tensors are cut: fairscale's layers, model.py of Meta's llama and llama-models.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from struct import pack
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from .tiny import TinyLlama

Array = NDArray[np.float32]
STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
NAMES = {
    "token_embd": "tok_embeddings", "output_norm": "norm", "output": "output", "attn_norm": "attention_norm",
    "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv", "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1", "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3",
}  # fmt: skip


def text(value: str) -> bytes:
    return b"X" + pack("<I", len(value.encode())) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"J" + pack("<i", value) for value in values) + b"t"


def tensor_pickle(key: str, shape: tuple[int, ...], kind: str = "F32", legacy: bool = False, **other: Any) -> bytes:
    """The instructions that push a tensor. other: n (elements of its storage), offset, strides."""
    n = other.get("n", int(np.prod(shape)))
    strides = other.get("strides") or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = text("storage") + b"ctorch\n" + STORAGES[kind].encode() + b"\n" + text(key) + text("cpu") + b"J" + pack("<i", n)
    persistent = b"(" + storage + (b"N" if legacy else b"") + b"tQ"
    place = b"J" + pack("<i", other.get("offset", 0)) + numbers(*shape) + numbers(*strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + place + b"\x89" + b"ccollections\nOrderedDict\n)RtR"


def dict_pickle(values: Mapping[str, bytes]) -> bytes:
    """A whole pickle: an OrderedDict of values, each given by the instructions that push it."""
    items = b"".join(text(name) + value for name, value in values.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def write_zip(path: Path, pickled: bytes, storages: Mapping[str, bytes], folder: str = "consolidated", **options: Any) -> None:
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, content in {"data.pkl": pickled, "byteorder": options.get("byteorder", b"little")}.items():
            archive.writestr(f"{folder}/{name}", content)
        for key, content in storages.items():
            with archive.open(f"{folder}/data/{key}", "w", force_zip64=options.get("zip64", False)) as entry:
                entry.write(content)
        archive.writestr(f"{folder}/version", b"3\n")


def write_pickles(path: Path, pickled: bytes, storages: Mapping[str, bytes], width: int) -> None:
    """The layout before torch 1.6."""
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    content = (
        b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, system)) + pickled + pickle.dumps(list(storages), 2)
    )
    path.write_bytes(content + b"".join(pack("<q", len(s) // width) + s for s in storages.values()))


def write_pth(path: Path, tensors: Mapping[str, Array], kind: str, legacy: bool = False, **options: Any) -> None:
    keys = {name: str(i) for i, name in enumerate(tensors)}
    pickled = dict_pickle({name: tensor_pickle(keys[name], t.shape, kind, legacy) for name, t in tensors.items()})
    stored = {keys[name]: gguf.quantize(t, gguf.GGMLQuantizationType[kind]).tobytes() for name, t in tensors.items()}
    if legacy:
        write_pickles(path, pickled, stored, WIDTHS[kind])
    else:
        write_zip(path, pickled, stored, **options)


def of_300_tokens(tiny: TinyLlama) -> TinyLlama:
    """With one token more, so that the vocabulary can be cut in two or four."""
    longer = copy(tiny)
    longer.tokens, longer.scores = [*tiny.tokens, "\u2581in"], [*tiny.scores, -99.0]
    longer.kinds = [*tiny.kinds, tiny.kinds[-1]]
    more = {name: tiny.weights[name] for name in ("token_embd.weight", "output.weight")}
    longer.weights = tiny.weights | {name: np.concatenate([w, w[-1:] * np.float32(0.5)]) for name, w in more.items()}
    assert longer.n_vocab == 300
    return longer


def rounded(tiny: TinyLlama, kind: str) -> TinyLlama:
    """All weights as a file of this kind has them, norms too."""
    to = gguf.GGMLQuantizationType[kind]
    less = copy(tiny)
    less.weights = {n: gguf.dequantize(gguf.quantize(w, to), to).reshape(w.shape) for n, w in tiny.weights.items()}
    return less


def shares(tiny: TinyLlama, n: int, embedding_axis: int = 1) -> list[dict[str, Array]]:
    """What each of n files holds, by Meta's names. embedding_axis: 1 for LLaMA 1 and 2, 0 for LLaMA 3."""
    files: list[dict[str, Array]] = [{} for _ in range(n)]
    for gguf_name, weight in tiny.weights.items():
        *layer, name, _ = gguf_name.split(".")
        meta = ".".join([*(["layers", layer[1]] if layer else []), NAMES[name], "weight"])
        axis = {"attn_output": 1, "ffn_down": 1, "token_embd": embedding_axis}.get(name, 0)
        cut = [weight] * n if weight.ndim == 1 else np.split(weight, n, axis)
        for file, share in zip(files, cut, strict=True):
            file[meta] = np.ascontiguousarray(share)
    for file in files:  # LLaMA 1 and 2 have it
        freqs = np.ones(tiny.n_embd // tiny.n_head // 2, np.float32)  # LLaMA 1 has them in each layer too
        file |= {"rope.freqs": freqs, "layers.0.attention.inner_attention.rope.freqs": freqs}
    return files


def params(tiny: TinyLlama) -> dict[str, Any]:
    known = {"dim": tiny.n_embd, "multiple_of": 32, "n_heads": tiny.n_head, "n_layers": tiny.n_layer, "norm_eps": tiny.eps}
    heads = {"n_kv_heads": tiny.n_head_kv} if tiny.n_head_kv != tiny.n_head else {}
    base = {"rope_theta": tiny.rope_freq_base} if tiny.rope_freq_base != 10000.0 else {}
    return {**known, **heads, **base, "vocab_size": -1, "max_seq_len": tiny.n_ctx}


def write_meta(
    folder: Path,
    tiny: TinyLlama,
    n: int = 1,
    kind: str = "F32",
    *,
    legacy: bool = False,
    embedding_axis: int = 1,
    save: Callable[[Path, Mapping[str, Array], str], None] | None = None,
) -> None:
    """save: writes one .pth file; `write_pth` if none is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params(tiny)))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(tiny))
    for i, share in enumerate(shares(tiny, n, embedding_axis)):
        path = folder / f"consolidated.{i:02d}.pth"
        save(path, share, kind) if save else write_pth(path, share, kind, legacy)


def sentencepiece_model(tiny: TinyLlama) -> bytes:
    """The vocabulary as a protocol buffer, BPE, as LLaMA's."""
    pieces = b""
    for token, score, kind in zip(tiny.tokens, tiny.scores, tiny.kinds, strict=True):
        raw = token.encode()
        piece = b"\x0a" + varint(len(raw)) + raw + b"\x15" + pack("<f", score) + b"\x18" + varint(int(kind))
        pieces += b"\x0a" + varint(len(piece)) + piece
    trainer = b"\x18\x02"  # model_type = BPE
    normalizer = b"\x18\x01\x20\x00"  # add_dummy_prefix, no remove_extra_whitespaces
    return pieces + b"\x12" + varint(len(trainer)) + trainer + b"\x1a" + varint(len(normalizer)) + normalizer


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)
