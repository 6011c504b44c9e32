"""llama2.c's tokenizer.bin, a SentencePiece vocabulary, as GGUF's tokenizer metadata.

    length of the longest token, int32 | each token: score float32, length int32, its bytes

The number of tokens is the model's. LLaMA's order is taken for granted: 0 is unknown, 1 and 2 begin and end a text. In texts a
space is a space, not U+2581, and the tokens 1 and 2 stand between line feeds. Source: karpathy/llama2.c, tokenizer.py, run.c.
"""

from __future__ import annotations

import re
from pathlib import Path
from struct import unpack_from
from typing import Any

import numpy as np

from ops.errors import FormatError

from ..tokenizer.sentencepiece import SPACE
from ..tokenizer.token_kinds import TokenKind
from .ggml_vocabulary import SPECIAL
from .other_files import is_there

MAX_BYTES = 2**24
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def vocabulary(model: Path, n_vocab: int) -> dict[str, Any]:
    """tokenizer.ggml.* of the vocabulary beside a model's file. FormatError: it is missing, damaged, or another model's."""
    path = _beside(model, n_vocab)
    texts, scores = _tokens(path, n_vocab)
    tokens, kinds = zip(*(_kind(id, text) for id, text in enumerate(texts)), strict=True)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
    }


def _beside(model: Path, n_vocab: int) -> Path:
    names = (f"tok{n_vocab}.bin", "tokenizer.bin")
    for name in names:
        if is_there(path := model.with_name(name)):
            return path
    raise FormatError(f"{model}: the vocabulary is missing; put llama2.c's {names[1]} (or {names[0]}) beside the model's file")


def _tokens(path: Path, n_vocab: int) -> tuple[list[bytes], list[float]]:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise FormatError(f"{path}: {size} bytes are too many for a vocabulary of llama2.c, {MAX_BYTES} are the limit")
    data = path.read_bytes()
    texts: list[bytes] = []
    scores: list[float] = []
    at = 4
    while at < len(data) and len(texts) <= n_vocab:
        score, length = unpack_from("<fi", data, at) if at + 8 <= len(data) else (0.0, -1)
        at += 8
        if not 0 <= length <= len(data) - at:
            raise FormatError(f"{path}: token {len(texts)} is cut short or damaged; download the file again")
        texts.append(data[at : at + length])
        scores.append(score)
        at += length
    if len(texts) != n_vocab:
        told = f"more than {n_vocab}" if len(texts) > n_vocab else f"{len(texts)}"
        raise FormatError(f"{path}: the vocabulary has {told} tokens and the model {n_vocab}; they do not belong together")
    return texts, scores


def _kind(id: int, text: bytes) -> tuple[str, TokenKind]:
    if id in SPECIAL:
        return SPECIAL[id]
    token = text.decode("utf-8", "surrogateescape")
    return (token, TokenKind.BYTE) if _BYTE.fullmatch(token) else (token.replace(" ", SPACE), TokenKind.NORMAL)
