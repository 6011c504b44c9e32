"""llama2.c's .bin: a LLaMA as seven numbers and its weights, one tensor after the other, each for all layers before the next.

    version 0    int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size says that the
                 output matrix is not the embedding's
                 float32: embedding, attention norms, wq, wk, wv, wo, MLP norms, w1, w2, w3, last norm, cosines and sines of
                 rope [seq_len, head_size / 2], output
    version 1    "ak42" (0x616b3432, little-endian), version int32, the seven int32, shared u8 (the output is the embedding),
                 zeros up to byte 256
                 float32: attention norms, MLP norms, last norm, embedding, wq, wk, wv, wo, w1, w2, w3, output
    version 2    as version 1, with group_size int32 behind `shared`
                 the norms in float32; of each other tensor first its int8, then a float32 scale for each group_size of them

Rows of wq and wk stand in the order that GGUF wants. Source: karpathy/llama2.c, export.py, run.c and runq.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import unpack_from
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.blocks import FORMATS
from ops.errors import FormatError
from ops.tensor import MadeRows, Tensor

from .file_bytes import file_bytes
from .llama2c_vocabulary import vocabulary
from .model_file import ModelFile

BYTES_OF_VERSION_0, BYTES_OF_HEADER = 28, 256
MAX_LAYERS = 2**12
EPS = 1e-5  # of the norms: a constant of model.py and run.c
F32, Q8 = FORMATS["F32"], FORMATS["Q8_0_F32"]

Order = list[tuple[str, tuple[int, ...]]]  # names and shapes as they follow each other


@dataclass(frozen=True)
class Header:
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared: bool  # the output matrix is the embedding's
    version: int
    group_size: int = 0  # of version 2
    n_bytes: int = BYTES_OF_HEADER

    def is_plausible(self) -> bool:
        sizes = (self.dim, self.hidden_dim, self.n_layers, self.n_heads, self.n_kv_heads, self.vocab_size, self.seq_len)
        if min(sizes) < 1 or self.n_layers > MAX_LAYERS or (self.version == 2 and self.group_size < 1):
            return False
        return self.dim % self.n_heads == 0 and self.n_heads % self.n_kv_heads == 0

    def order(self) -> Order:
        n, kv, ff = self.dim, self.dim // self.n_heads * self.n_kv_heads, self.hidden_dim
        attention: Order = [("attn_q", (n, n)), ("attn_k", (kv, n)), ("attn_v", (kv, n)), ("attn_output", (n, n))]
        mlp: Order = [("ffn_gate", (ff, n)), ("ffn_down", (n, ff)), ("ffn_up", (ff, n))]
        attn_norm, ffn_norm, last_norm = ("attn_norm", (n,)), ("ffn_norm", (n,)), ("output_norm.weight", (n,))
        embedding, output = ("token_embd.weight", (self.vocab_size, n)), ("output.weight", (self.vocab_size, n))
        if self.version == 0:
            rope = (self.seq_len * (n // self.n_heads) // 2,)
            layers = self._in_every_layer([attn_norm, *attention, ffn_norm, *mlp])
            order = [embedding, *layers, last_norm, ("cosines", rope), ("sines", rope)]
        else:
            norms = [*self._in_every_layer([attn_norm, ffn_norm]), last_norm]
            order = [*norms, embedding, *self._in_every_layer([*attention, *mlp])]
        return order if self.shared else [*order, output]

    def _in_every_layer(self, tensors: Order) -> Order:
        return [(f"blk.{i}.{name}.weight", shape) for name, shape in tensors for i in range(self.n_layers)]

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        n = prod(shape)
        return n + 4 * (n // self.group_size) if self.version == 2 and len(shape) == 2 else 4 * n

    def bytes_of_file(self) -> int:
        return self.n_bytes + sum(self.bytes_of(shape) for _, shape in self.order())


def is_headless(path: Path, start: bytes) -> bool:
    """Is this a file of version 0, which no magic number marks? Then its size is what its first 28 bytes, `start`, imply."""
    if len(start) < BYTES_OF_VERSION_0:
        return False
    header = _version_0(start)
    return header.is_plausible() and path.stat().st_size == header.bytes_of_file()


def read_llama2c(path: Path, *, mmap: bool = True) -> ModelFile:
    """Open a file of llama2.c, version 0, 1 or 2, and the vocabulary beside it: tokenizer.bin, or tok512.bin for 512 tokens.

    Tensors are views of the mapped file. Those of version 2 are rows made when asked for: blocks Q8_0_F32, without a loss,
    where groups are made of whole blocks of 32, else float32.
    FormatError: it is damaged, of another version, or the vocabulary is missing or another model's; OSError.
    """
    data, check = file_bytes(path, mmap=mmap)
    header = _header(path, bytes(data[:BYTES_OF_HEADER]))
    if not header.is_plausible() or len(data) != header.bytes_of_file():
        raise FormatError(
            f"{path}: the file has {len(data)} bytes, not those of a model of the sizes in its header; "
            "it is cut short or damaged: download it again"
        )
    tensors = {}
    at = header.n_bytes
    for name, shape in header.order():
        here = data[at : at + header.bytes_of(shape)]
        at += len(here)
        if header.version == 2 and len(shape) == 2:
            tensors[name] = _of_groups(path, name, shape, here, header.group_size)
        elif name not in ("cosines", "sines"):  # rope's, which are computed here
            tensors[name] = Tensor(name, shape, F32, here.reshape(-1, 4 * shape[-1]))
    metadata = _metadata(path, header) | vocabulary(path, header.vocab_size)
    return ModelFile(path, f"llama2.c v{header.version}", metadata, tensors, mmap, check)


def _header(path: Path, start: bytes) -> Header:
    if start[:4] != b"24ka":
        if len(start) < BYTES_OF_VERSION_0:
            raise FormatError(f"{path}: this is no file of llama2.c, or one that is cut short; download it again")
        return _version_0(start)
    if len(start) < BYTES_OF_HEADER:
        raise FormatError(f"{path}: the file ends within its header; download it again")
    version, dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, shared, group_size = unpack_from(
        "<8iBi", start, 4
    )
    if version not in (1, 2):
        raise FormatError(f"{path}: this is version {version} of llama2.c's files, and only 0, 1 and 2 are read")
    return Header(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, shared != 0, version, group_size)


def _version_0(start: bytes) -> Header:
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = unpack_from("<7i", start)
    vocab_size, shared = abs(vocab_size), vocab_size > 0
    return Header(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, shared, 0, n_bytes=BYTES_OF_VERSION_0)


def _of_groups(path: Path, name: str, shape: tuple[int, ...], data: NDArray[np.uint8], group: int) -> Tensor:
    """A tensor of int8 with a scale for each `group` of them, counted through all rows: a group may go on in the next row."""
    n_rows, n = shape
    if n_rows * n % group:
        raise FormatError(f"{path}: tensor {name} of shape {shape} is not made of whole groups of {group}; the file is damaged")
    quants = data[: n_rows * n].reshape(n_rows, n)
    scales = data[n_rows * n :].reshape(-1, 4)
    size = Q8.block_size
    is_blocks = n % size == 0 and group % size == 0

    def scale_bytes(rows: Any, step: int) -> NDArray[np.uint8]:
        """uint8[rows, n / step, 4]: the scale of every step-th weight."""
        first: NDArray[np.int64] = np.arange(n_rows)[rows, None] * n + np.arange(0, n, step)
        return scales[first // group]

    def blocks(rows: Any) -> NDArray[np.uint8]:
        values = quants[rows]
        parts = [scale_bytes(rows, size), values.reshape(len(values), n // size, size)]
        return np.concatenate(parts, axis=2).reshape(len(values), -1)

    def floats(rows: Any) -> NDArray[np.uint8]:
        values: NDArray[np.float32] = quants[rows].view(np.int8).astype("<f4")
        with np.errstate(invalid="ignore", over="ignore"):  # scales of a damaged file
            values *= scale_bytes(rows, 1).view("<f4")[..., 0]
        return values.view(np.uint8)

    format, make = (Q8, blocks) if is_blocks else (F32, floats)
    return Tensor(name, shape, format, MadeRows((n_rows, format.row_bytes(n)), make, (data,)))


def _metadata(path: Path, header: Header) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": path.stem,
        "general.file_type": 7 if header.version == 2 else 0,  # of GGUF: Q8_0, F32
        "llama.context_length": header.seq_len,
        "llama.embedding_length": header.dim,
        "llama.block_count": header.n_layers,
        "llama.feed_forward_length": header.hidden_dim,
        "llama.attention.head_count": header.n_heads,
        "llama.attention.head_count_kv": header.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": EPS,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": header.dim // header.n_heads,
    }
