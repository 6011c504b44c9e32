"""Files of llama.cpp before GGUF, byte by byte, and the blocks of that time, quantised and read back in plain numpy.

Layouts: llama.cpp's `llama_file_saver` and convert-pth-to-ggml.py for the files, `quantize_row_q4_0_reference` and its
neighbours in ggml.c before and after pull requests 1405 and 1508 for the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from struct import pack

import gguf
import numpy as np
from numpy.typing import NDArray

from .tiny import TinyLlama

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
FTYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q6_K": 18}
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q6_K": 14}
NAMES = {
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "output": "output",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}
COLUMNS_ARE_SHARED = ("tok_embeddings", "wo", "w2")


@dataclass(frozen=True)
class Kind:
    """A file's kind: magic, version (0: none), and what follows from it."""

    magic: int
    version: int

    @property
    def name(self) -> str:
        word = {0x67676D6C: "ggml", 0x67676D66: "ggmf", 0x67676A74: "ggjt"}[self.magic]
        return f"{word} v{self.version}" if self.version else word

    @property
    def is_ggjt(self) -> bool:
        return self.magic == 0x67676A74

    @property
    def in_pairs(self) -> bool:
        """Byte j of the nibbles: weights 2j and 2j + 1; later j and j + 16."""
        return not self.is_ggjt or self.version < 2

    @property
    def scale(self) -> type[np.floating]:
        """The type of the scales of Q4_0, Q4_1, Q8_0."""
        return np.float16 if self.is_ggjt and self.version == 3 else np.float32


GGML = Kind(0x67676D6C, 0)
GGMF = Kind(0x67676D66, 1)
GGJT1, GGJT2, GGJT3 = (Kind(0x67676A74, version) for version in (1, 2, 3))
KINDS = (GGML, GGMF, GGJT1, GGJT2, GGJT3)


def quantized(weight: Array, type: str, kind: Kind) -> tuple[Bytes, Array]:
    """A matrix as rows of that time's blocks, uint8[rows, bytes], and the float32 numbers that these stand for."""
    if type == "F32":
        return weight.view(np.uint8), weight
    if type == "F16":
        return weight.astype(np.float16).view(np.uint8), weight.astype(np.float16).astype(np.float32)
    if type == "Q6_K":  # new in v3, and the same since: the gguf package reads it, and quantises none
        data = _any_q6_k(weight)
        return data, gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q6_K)
    fields, values = QUANTIZERS[type](weight.reshape(-1, 32), kind)
    blocks = np.concatenate([np.ascontiguousarray(f).view(np.uint8).reshape(len(values), -1) for f in fields], axis=1)
    return blocks.reshape(len(weight), -1), values.astype(np.float32).reshape(weight.shape)


Quantizer = Callable[[Array, Kind], tuple[list[NDArray[np.generic]], Array]]


def _largest(x: Array) -> Array:
    """Of each block the number furthest from zero, with its sign; [n, 1]."""
    return np.take_along_axis(x, np.argmax(np.abs(x), axis=1)[:, None], axis=1)


def _rounded(x: Array, d: Array, shift: float, top: int) -> NDArray[np.uint8]:
    q = x / np.where(d == 0, 1, d) + shift
    return np.clip(np.floor(q), 0, top).astype(np.uint8)


def _nibbles(q: NDArray[np.uint8], kind: Kind) -> NDArray[np.uint8]:
    low, high = (q[:, 0::2], q[:, 1::2]) if kind.in_pairs else (q[:, :16], q[:, 16:])
    return (low & 15) | ((high & 15) << 4)


def _fifth_bits(q: NDArray[np.uint8]) -> NDArray[np.uint32]:
    weights = np.uint32(1) << np.arange(32, dtype=np.uint32)
    return ((q >> 4).astype(np.uint32) * weights).sum(axis=1, dtype=np.uint32)[:, None]


def _q4_0(x: Array, kind: Kind) -> tuple[list[NDArray[np.generic]], Array]:
    d = (_largest(x) / -8).astype(kind.scale)
    q = _rounded(x, d.astype(np.float32), 8.5, 15)
    return [d, _nibbles(q, kind)], (q.astype(np.float32) - 8) * d.astype(np.float32)


def _q4_1(x: Array, kind: Kind) -> tuple[list[NDArray[np.generic]], Array]:
    low = x.min(axis=1, keepdims=True)
    d, m = ((x.max(axis=1, keepdims=True) - low) / 15).astype(kind.scale), low.astype(kind.scale)
    q = _rounded(x - low, d.astype(np.float32), 0.5, 15)
    return [d, m, _nibbles(q, kind)], q.astype(np.float32) * d.astype(np.float32) + m.astype(np.float32)


def _q5_0(x: Array, kind: Kind) -> tuple[list[NDArray[np.generic]], Array]:
    d = (_largest(x) / -16).astype(np.float16)
    q = _rounded(x, d.astype(np.float32), 16.5, 31)
    return [d, _fifth_bits(q), _nibbles(q, kind)], (q.astype(np.float32) - 16) * d.astype(np.float32)


def _q5_1(x: Array, kind: Kind) -> tuple[list[NDArray[np.generic]], Array]:
    low = x.min(axis=1, keepdims=True)
    d, m = ((x.max(axis=1, keepdims=True) - low) / 31).astype(np.float16), low.astype(np.float16)
    q = _rounded(x - low, d.astype(np.float32), 0.5, 31)
    return [d, m, _fifth_bits(q), _nibbles(q, kind)], q.astype(np.float32) * d.astype(np.float32) + m.astype(np.float32)


def _q8_0(x: Array, kind: Kind) -> tuple[list[NDArray[np.generic]], Array]:
    d = (np.abs(x).max(axis=1, keepdims=True) / 127).astype(kind.scale)
    q = np.clip(np.round(x / np.where(d == 0, 1, d).astype(np.float32)), -127, 127).astype(np.int8)
    return [d, q], q.astype(np.float32) * d.astype(np.float32)


QUANTIZERS: dict[str, Quantizer] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0}


def _any_q6_k(weight: Array) -> Bytes:
    """Random blocks of 256 weights, as large as the matrix's: 192 bytes of quants, 16 int8 scales, a float16 scale."""
    rng = np.random.default_rng(weight.size)
    blocks = rng.integers(0, 256, (weight.size // 256, 210), np.uint8)
    d = weight.reshape(-1, 256).std(axis=1, keepdims=True) / (18 * 74)  # the deviation of the quants, and of the scales
    blocks[:, 208:] = d.astype(np.float16).view(np.uint8)
    return blocks.reshape(len(weight), -1)


def raw_tokens(tiny: TinyLlama) -> list[bytes]:
    """As convert-pth-to-ggml.py wrote them: bytes as themselves, control tokens empty, spaces as spaces."""
    texts = [" \u2047 ".encode(), b"", b"", *(bytes([byte]) for byte in range(256))]
    return texts + [token.replace("\u2581", " ").encode("utf-8", "surrogateescape") for token in tiny.tokens[259:]]


def ggml_name(name: str) -> str:
    """blk.0.attn_q.weight -> layers.0.attention.wq.weight"""
    *layer, part, weight = name.split(".")
    return ".".join([*(["layers", layer[1]] if layer else []), NAMES[part], weight])


def write_ggml(path: Path, tiny: TinyLlama, kind: Kind, type: str = "F32", *, n_parts: int = 1, n_mult: int = 32) -> TinyLlama:
    """Write the model, in n_parts files, and give back a copy of it with the weights that the files stand for."""
    kept = copy(tiny)
    kept.weights = {}
    shares: list[list[tuple[str, int, tuple[int, ...], bytes]]] = [[] for _ in range(n_parts)]
    for name, weight in tiny.weights.items():
        known = ggml_name(name)
        if weight.ndim == 1:
            kept.weights[name] = weight
            for share in shares:
                share.append((known, TYPES["F32"], weight.shape, weight.tobytes()))
            continue
        axis = 1 if known.split(".")[-2] in COLUMNS_ARE_SHARED else 0
        values = []
        for share, part in zip(shares, np.split(weight, n_parts, axis), strict=True):
            data, value = quantized(np.ascontiguousarray(part), type, kind)
            values.append(value)
            share.append((known, TYPES[type], part.shape, data.tobytes()))
        kept.weights[name] = np.concatenate(values, axis)
    for i, share in enumerate(shares):
        content = _header(tiny, kind, FTYPES[type], n_mult)
        for name, number, shape, data in share:
            content += pack("<3i", len(shape), len(name), number) + pack(f"<{len(shape)}i", *reversed(shape)) + name.encode()
            if kind.is_ggjt:
                content += bytes(-len(content) % 32)
            content += data
        path.with_name(path.name + (f".{i}" if i else "")).write_bytes(content)
    return kept


def write_hole(path: Path, kind: Kind, type: str, *, n_embd: int, n_head: int, n_layer: int, n_ff: int, n_mult: int) -> int:
    """A ggjt file of a real LLaMA's shapes, whose weights are a hole of zeros; gives back the bytes of all tensors."""
    tiny = TinyLlama(n_head=n_head, n_head_kv=n_head, n_layer=0)
    tiny.n_embd, tiny.n_layer = n_embd, n_layer
    tiny.tokens += [f"word{i}" for i in range(tiny.n_vocab, 32000)]
    tiny.scores += [259.0 - i for i in range(len(tiny.scores), 32000)]
    square, vector, wide = (n_embd, n_embd), (n_embd,), (n_ff, n_embd)
    shapes = {"tok_embeddings": (32000, n_embd), "norm": vector, "output": (32000, n_embd)}
    for i in range(n_layer):
        shapes |= {f"layers.{i}.attention.w{letter}": square for letter in "qkvo"}
        shapes |= {f"layers.{i}.attention_norm": vector, f"layers.{i}.ffn_norm": vector}
        shapes |= {f"layers.{i}.feed_forward.w{n}": wide if n != 2 else wide[::-1] for n in (1, 2, 3)}
    n_bytes = 0
    with path.open("wb") as file:
        file.write(_header(tiny, kind, FTYPES[type], n_mult))
        for name, shape in shapes.items():
            stored = type if len(shape) == 2 else "F32"
            known = f"{name}.weight".encode()
            file.write(pack("<3i", len(shape), len(known), TYPES[stored]) + pack(f"<{len(shape)}i", *reversed(shape)) + known)
            size = int(np.prod(shape[:-1])) * quantized(np.zeros((1, shape[-1]), np.float32), stored, kind)[0].size
            n_bytes += size
            file.seek(-file.tell() % 32 + size, 1)
        file.truncate()
    return n_bytes


def _header(tiny: TinyLlama, kind: Kind, ftype: int, n_mult: int) -> bytearray:
    content = bytearray(pack("<I", kind.magic) + (pack("<I", kind.version) if kind.version else b""))
    n_rot = tiny.n_embd // tiny.n_head
    content += pack("<7i", tiny.n_vocab, tiny.n_embd, n_mult, tiny.n_head, tiny.n_layer, n_rot, ftype)
    for text, score in zip(raw_tokens(tiny), tiny.scores, strict=True):
        content += pack("<i", len(text)) + text
        if kind.version:
            content += pack("<f", score)
    return content
