"""The vocabulary in a file of spring 2023, a text and a score for each token, as GGUF's metadata has it.

What SentencePiece's model file tells of a token's kind was lost on the way into these files. It is known again because all of
them are LLaMA's: token 0 is unknown, 1 and 2 begin and end a text, 3 to 258 are the bytes. So does llama.cpp's converter
(convert_llama_ggml_to_gguf.py, `add_vocab`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..tokenizer.sentencepiece import SPACE
from ..tokenizer.token_kinds import TokenKind

# LLaMA's first tokens
SPECIAL = {0: ("<unk>", TokenKind.UNKNOWN), 1: ("<s>", TokenKind.CONTROL), 2: ("</s>", TokenKind.CONTROL)}
FIRST_BYTE, FIRST_NORMAL = 3, 259
NO_CHARACTER = "\ufffd".encode()  # what the first converter, which asked for each token's text, got for half a character
LAST_TO_MERGE = -1e9


def vocabulary(texts: Sequence[bytes], scores: Sequence[float]) -> dict[str, Any]:
    """tokenizer.ggml.*; bytes that are no UTF-8 become lone surrogates. Without scores, LLaMA's own are filled in."""
    tokens, kinds = zip(*(_token(id, text) for id, text in enumerate(texts)), strict=True)
    if not scores:
        scores = [_score_of_llama(id, token) for id, token in enumerate(tokens)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _token(id: int, text: bytes) -> tuple[str, TokenKind]:
    """Text and kind of a token."""
    if id in SPECIAL:
        return SPECIAL[id]
    if not text:
        return "", TokenKind.CONTROL
    if FIRST_BYTE <= id < FIRST_NORMAL and (len(text) == 1 or text == NO_CHARACTER):
        return f"<0x{text[0] if len(text) == 1 else id - FIRST_BYTE:02X}>", TokenKind.BYTE
    return text.decode("utf-8", "surrogateescape").replace(" ", SPACE), TokenKind.NORMAL


def _score_of_llama(id: int, token: str) -> float:
    """As in LLaMA's tokenizer.model: the later a token was learned, the later it merges; runs of spaces last of all."""
    if id < FIRST_NORMAL:
        return 0.0
    return LAST_TO_MERGE if not token.strip(SPACE) else float(FIRST_NORMAL - id)
